"""Only this machine, only Atelier's own page; what is unclear is refused."""

import pytest

from webui.core.errors import NotAllowed
from webui.core.loopback import is_loopback
from webui.extensions.access import may_manage, require_local

PAGE = {"Host": "127.0.0.1:7860", "Origin": "http://127.0.0.1:7860"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "::1%lo", "0:0:0:0:0:0:0:1"])
def test_loopback(host):
    assert is_loopback(host)


NOT_LOOPBACK = [None, "", "localhost", "testclient", "127.0.0.1.example.org", "127.1", "0177.0.0.1", "2130706433"]
NOT_LOOPBACK += ["0.0.0.0", "192.168.1.5", "10.0.0.1", "8.8.8.8", " 127.0.0.1"]
NOT_LOOPBACK += ["::", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1%lo", "[::1]"]


@pytest.mark.parametrize("host", NOT_LOOPBACK)
def test_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "headers",
    [
        PAGE,
        {"host": "localhost:7860", "origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "127.0.0.1"},
    ],
)
def test_own_page(headers):
    assert may_manage("127.0.0.1", headers)
    require_local("127.0.0.1", headers)


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("192.168.1.5", PAGE),
        (None, PAGE),
        ("127.0.0.1", {}),
        ("127.0.0.1", {"host": "abcdef.gradio.live"}),
        ("127.0.0.1", {"host": "evil.example:7860", "origin": "http://evil.example:7860"}),
        ("127.0.0.1", {"host": "192.168.1.5:7860"}),
        ("127.0.0.1", PAGE | {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", PAGE | {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", PAGE | {"Via": "1.1 proxy"}),
        ("127.0.0.1", PAGE | {"Origin": "https://evil.example"}),
        ("127.0.0.1", PAGE | {"Origin": "http://127.0.0.1:3000"}),
        ("127.0.0.1", PAGE | {"Origin": "null"}),
        ("127.0.0.1", PAGE | {"Origin": "http://[broken"}),
        ("127.0.0.1", PAGE | {"Sec-Fetch-Site": "cross-site"}),
        ("127.0.0.1", {"host": "[broken"}),
    ],
)
def test_everything_else(client, headers):
    assert not may_manage(client, headers)
    with pytest.raises(NotAllowed, match="machine that Atelier runs on"):
        require_local(client, headers)
