"""Install and remove, against real git and the real file system."""

import os
import time
from pathlib import Path

import pytest

from webui.core.errors import ResourceError, UserError
from webui.extensions.installer import Installer
from webui.extensions.views import RECORD_FILE, read_record


@pytest.fixture
def installer(folder: Path) -> Installer:
    return Installer(folder)


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_from_a_repository(installer, folder, repository, git, tmp_path):
    assert installer.install(str(repository)) == "tell-tale"
    record = read_record(folder / "tell-tale")
    assert record.commit == git("-C", repository, "rev-parse", "HEAD")
    assert record.source == str(repository)
    assert nothing_but(folder, "tell-tale")
    assert not (tmp_path / "was-run").exists()


def test_from_a_bare_repository(installer, folder, repository, git, tmp_path):
    git("clone", "-q", "--bare", repository, tmp_path / "bare-one.git")
    assert installer.install(str(tmp_path / "bare-one.git")) == "bare-one"
    assert (folder / "bare-one" / "extension.py").is_file()


def test_hooks_in_the_source_do_not_run(installer, repository, tmp_path):
    for name in ("post-checkout", "post-upload-pack", "pre-receive"):
        hook = repository / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
        hook.chmod(0o755)
    installer.install(str(repository))
    assert not (tmp_path / "hook-ran").exists()


def test_inherited_git_variables_do_not_mislead(installer, folder, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    installer.install(str(repository))
    assert read_record(folder / "tell-tale").commit


def test_from_a_plain_folder(installer, folder, tmp_path):
    source = tmp_path / "plain"
    (source / "sub" / "__pycache__").mkdir(parents=True)
    (source / "extension.py").write_text("")
    (source / "sub" / "more.py").write_text("x = 1")
    (source / "secret").symlink_to("/etc/hostname")
    assert installer.install(str(source)) == "plain"
    assert (folder / "plain" / "sub" / "more.py").read_text() == "x = 1"
    assert not (folder / "plain" / "sub" / "__pycache__").exists()
    assert (folder / "plain" / "secret").is_symlink()
    assert read_record(folder / "plain").commit == ""


def test_never_overwrites(installer, folder, repository):
    for make in (lambda path: path.mkdir(), lambda path: path.write_text("mine"), lambda path: path.symlink_to("gone")):
        make(folder / "tell-tale")
        with pytest.raises(UserError, match="already"):
            installer.install(str(repository))
        assert nothing_but(folder, "tell-tale")
        target = folder / "tell-tale"
        target.rmdir() if target.is_dir() else target.unlink()


def test_a_record_in_the_source_is_not_followed(installer, folder, repository, git, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (repository / RECORD_FILE).symlink_to(victim)
    git("-C", repository, "add", ".")
    git("-C", repository, "commit", "-q", "-m", "trap")
    installer.install(str(repository))
    assert victim.read_text() == "precious"
    assert read_record(folder / "tell-tale").source == str(repository)


def test_refuses_what_is_no_extension(installer, folder, repository, git, tmp_path):
    git("-C", repository, "mv", "extension.py", "other.py")
    git("-C", repository, "commit", "-q", "-m", "moved")
    (tmp_path / "empty").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "extension.py").symlink_to("/etc/hostname")
    for source in (repository, tmp_path / "empty", tmp_path / "missing", linked, folder, tmp_path, Path("/")):
        with pytest.raises(UserError):
            installer.install(str(source))
        assert nothing_but(folder)


def test_git_that_fails_is_quoted_and_cleaned_up(installer, folder, tmp_path):
    (tmp_path / "broken" / ".git").mkdir(parents=True)
    with pytest.raises(UserError, match=r"git could not clone .*broken"):
        installer.install(str(tmp_path / "broken"))
    assert nothing_but(folder)


def test_git_that_hangs_is_ended_with_its_children(folder, tmp_path):
    slow = tmp_path / "slow-git"
    # Writes part of a clone, then leaves a child that holds the pipes, as git-remote-https would.
    slow.write_text(f'#!/bin/sh\nfor last; do :; done\nmkdir "$last"\nsleep 60 & echo $! > {tmp_path}/child\nwait\n')
    slow.chmod(0o755)
    with pytest.raises(UserError, match=r"not fetched within 0\.5 s"):
        Installer(folder, timeout_s=0.5, git=str(slow)).install("https://example.org/never")
    assert nothing_but(folder)
    assert ends(int((tmp_path / "child").read_text()))


def ends(process: int) -> bool:
    """Whether a killed process goes within seconds; a zombie that nobody has reaped yet is gone as well."""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_no_git(folder):
    with pytest.raises(ResourceError, match="install git"):
        Installer(folder, git="/no/such/git").install("https://example.org/x")


def test_git_gets_a_list_and_cannot_ask(folder, tmp_path):
    spy = tmp_path / "spy-git"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nenv > {tmp_path}/environment\nexit 1\n')
    spy.chmod(0o755)
    with pytest.raises(UserError, match="it said nothing"):
        Installer(folder, git=str(spy)).install("https://example.org/$(touch x);/y")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--") + 1] == "https://example.org/$(touch x);/y"
    environment = (tmp_path / "environment").read_text().splitlines()
    assert {"GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=https:ssh"} <= set(environment)


def test_remove(installer, folder, repository):
    installer.install(str(repository))
    installer.remove("tell-tale")
    assert nothing_but(folder)


def test_remove_takes_only_the_link(installer, folder, repository):
    (folder / "linked").symlink_to(repository)
    installer.remove("linked")
    assert nothing_but(folder)
    assert (repository / "extension.py").is_file()


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "/etc", "missing", "README.md", ".atelier-staging-x"])
def test_remove_stays_inside(installer, folder, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (folder / "README.md").write_text("stays")
    (folder / ".atelier-staging-x").mkdir()
    with pytest.raises(UserError):
        installer.remove(name)
    assert (tmp_path / "outside").is_dir()
    assert nothing_but(folder, "README.md", ".atelier-staging-x")


def test_sweep_takes_old_leftovers_only(installer, folder):
    for name, age_s in ((".atelier-staging-old", 1000), (".atelier-staging-new", 0), ("mine", 1000)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    installer.sweep()
    assert nothing_but(folder, ".atelier-staging-new", "mine")


def test_arriving_is_called_before_it_is_there_and_can_stop_it(installer, folder, repository):
    def refuse(name: str) -> None:
        assert (name, (folder / name).exists()) == ("tell-tale", False)
        raise UserError("not this one")

    with pytest.raises(UserError, match="not this one"):
        installer.install(str(repository), arriving=refuse)
    assert nothing_but(folder)


def test_an_unwritable_folder_is_a_sentence(repository, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="extensions folder"):
        Installer(tmp_path / "file").install(str(repository))
