"""What may be typed as a source; nothing here touches git or the disk."""

import pytest

from webui.core.errors import UserError
from webui.extensions.sources import check_name, parse_source


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://github.com/someone/my-frame", "my-frame"),
        ("https://github.com/someone/my-frame.git/", "my-frame"),
        ("https://example.org:8443/my_frame.git", "my_frame"),
        ("ssh://git@example.org:22/someone/my.frame", "my.frame"),
        ("git@github.com:someone/my-frame.git", "my-frame"),
        ("git@github.com:my-frame", "my-frame"),
        ("  https://github.com/someone/spaces-around  ", "spaces-around"),
    ],
)
def test_addresses(text, name):
    source = parse_source(text)
    assert (source.name, source.location, source.local) == (name, text.strip(), False)


def test_local_paths_are_resolved(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    source = parse_source(f"{tmp_path}/link/../link/")
    assert source.local
    assert source.location == str(tmp_path / "real")
    assert source.name == "real"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "-u./evil",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "fd::17",
        "https://-oProxyCommand=x/a",
        "ssh://-oProxyCommand=touch%20x/a",
        "-oProxyCommand=x@host:a",
        "git@-host:a",
        "git@host:-oProxyCommand=x",
        "http://example.org/plain",
        "git://example.org/plain",
        "file:///tmp/x",
        "ftp://example.org/x",
        "github.com/someone/my-frame",
        "relative/path",
        "../up",
        "https:///no-host",
        "https://example.org:port/x",
        "https://[broken/x",
        "https://example.org",
        "https://example.org/..",
        "https://example.org/a/%2e%2e",
        "https://example.org/.hidden",
        "https://example.org/a b",
        "https://example.org/.git",
        "git@host:..",
        "/",
        "/tmp/with\nnewline",
        "~nobody-of-that-name/x",
        "https://example.org/x\0y",
        "https://example.org/" + "x" * 101,
    ],
)
def test_refused(text):
    with pytest.raises(UserError):
        parse_source(text)


@pytest.mark.parametrize("text", ["https://me:s3cret@example.org/x", "https://s3cret@example.org/x"])
def test_secrets_are_refused_and_not_repeated(text):
    with pytest.raises(UserError, match="credential helper") as caught:
        parse_source(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".git", "-x", "a.", "a\n", "ünïcode", "a:b"])
def test_names_that_are_no_folder(name):
    with pytest.raises(UserError):
        check_name(name)
