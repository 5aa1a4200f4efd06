"""A host on a temporary folder, and ways to put extensions and git repositories there."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from webui.extensions import loader
from webui.extensions.host import ExtensionHost
from webui.settings.store import SettingsStore


@pytest.fixture
def folder(tmp_path: Path):
    made = tmp_path / "extensions"
    made.mkdir()
    yield made
    for extension in made.iterdir():
        loader.forget(extension)


@pytest.fixture
def store(tmp_path: Path) -> SettingsStore:
    return SettingsStore(tmp_path / "settings.json")


@pytest.fixture
def host(folder: Path, store: SettingsStore) -> ExtensionHost:
    return ExtensionHost(folder, store)


@pytest.fixture
def reopen(folder: Path, tmp_path: Path) -> Callable[[], ExtensionHost]:
    """A second host over the same folder and settings file, as after a restart."""
    return lambda: ExtensionHost(folder, SettingsStore(tmp_path / "settings.json"))


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], Path]:
    """write(name, body) makes an extension whose extension.py holds `body` below the usual imports."""

    def write(name: str, body: str) -> Path:
        (folder / name).mkdir(exist_ok=True)
        head = "from webui.extensions import ExtensionSetting, Tab, hookimpl\n"
        (folder / name / "extension.py").write_text(head + body, encoding="utf-8")
        return folder / name

    return write


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """git("-C", folder, …) in an environment without the user's configuration."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "Test", f"GIT_{who}_EMAIL": "test@example.org"}

    def git(*arguments: object) -> str:
        command = ["git", *map(str, arguments)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    return git


@pytest.fixture
def repository(tmp_path: Path, git) -> Path:
    """A git repository with one commit: an extension that leaves a file behind if its code is ever run."""
    made = tmp_path / "sources" / "tell-tale"
    made.mkdir(parents=True)
    marker = tmp_path / "was-run"
    (made / "extension.py").write_text(
        f'"""Leaves a mark."""\n__version__ = "2.1"\nopen({str(marker)!r}, "w").close()\n', encoding="utf-8"
    )
    git("init", "-q", made)
    git("-C", made, "add", ".")
    git("-C", made, "commit", "-q", "-m", "first")
    return made
