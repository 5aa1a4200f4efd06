"""Puts extensions into the extensions folder and takes them out again. Never runs a line of them.

A source is fetched into a hidden folder beside the others and renamed into place when it is complete, so an extension
is there whole or not at all. Nothing that exists is overwritten, and nothing outside the folder is written or removed.
Who may ask for this is decided in `webui.extensions.access`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from webui.core.errors import ResourceError, UserError
from webui.core.paths import is_within
from webui.extensions import git
from webui.extensions.sources import Source, check_name, parse_source
from webui.extensions.views import ENTRY_FILE, InstallRecord, write_record

_STAGING = ".atelier-staging-"

_log = logging.getLogger(__name__)


class Installer:
    """Installs into and removes from one folder. Thread-safe: one change at a time.

    `timeout_s` limits each git command; `git` is the program to run.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 300, git: str = "git") -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._git = git
        self._lock = threading.Lock()

    def install(self, source: str, *, arriving: Callable[[str], object] | None = None) -> str:
        """Fetches an extension from a git address, a local repository (both cloned) or a local folder (copied).

        `arriving(name)` is called when it is complete, just before it appears in the folder; what that raises stops it.
        Returns its name, which is its folder's. Raises `UserError` for a source that `parse_source` refuses, that
        cannot be fetched, holds no extension.py, or whose name is taken, and `ResourceError` when it cannot be written.
        """
        found = parse_source(source)
        if found.local:
            self._check_local(Path(found.location))
        with self._lock, self._staging() as staging:
            target = self._free(found.name)
            fetched = staging / found.name
            commit = self._fetch(found, fetched)
            entry = fetched / ENTRY_FILE
            if not entry.is_file() or not is_within(fetched, entry):
                raise UserError(f"{found.location} holds no {ENTRY_FILE}, so it is no extension for Atelier.")
            write_record(fetched, InstallRecord(source=found.location, commit=commit))
            if arriving is not None:
                arriving(found.name)
            fetched.rename(target)
        _log.info("Installed extension %s from %s at %s", found.name, found.location, commit or "no commit")
        return found.name

    def remove(self, name: str) -> None:
        """Deletes an extension; of a symbolic link only the link.

        Raises `UserError` when there is none of that name, `ResourceError` when it cannot be deleted.
        """
        target = self._folder / check_name(name)
        with self._lock:
            if not target.is_symlink() and not (target.is_dir() and is_within(self._folder, target)):
                raise UserError(f"There is no extension {name!r} in {self._folder}.")
            with self._staging() as staging:
                if target.is_symlink():
                    target.unlink()
                else:
                    # Out of sight first, so that what a failure leaves behind is not loaded half-deleted.
                    target.rename(staging / name)
        _log.info("Removed extension %s", name)

    def sweep(self) -> None:
        """Removes what an install or removal that was killed left behind, once it is too old to be still at work."""
        for leftover in self._folder.glob(f"{_STAGING}*"):
            if time.time() - leftover.stat().st_mtime > 2 * self._timeout_s:
                shutil.rmtree(leftover, ignore_errors=True)

    def _check_local(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(f"There is no folder {path}; check the path.")
        if is_within(self._folder, path) or is_within(path, self._folder):
            raise UserError(f"{path} overlaps the extensions folder {self._folder}; install from another place.")

    def _free(self, name: str) -> Path:
        target = self._folder / name
        if os.path.lexists(target):
            raise UserError(f"There is an extension {name!r} already; remove it first to install it anew.")
        if not is_within(self._folder, target):
            raise UserError(f"{name!r} would lie outside {self._folder}; rename the source.")
        return target

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A hidden folder on the same file system, gone afterwards; what the disk refuses becomes `ResourceError`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=_STAGING) as staging:
                yield Path(staging)
        except OSError as error:
            raise ResourceError(f"The extensions folder {self._folder} could not be changed: {error}") from error

    def _fetch(self, source: Source, target: Path) -> str:
        if not source.local or _is_repository(Path(source.location)):
            return git.clone(source, target, git=self._git, timeout_s=self._timeout_s)
        if not (Path(source.location) / ENTRY_FILE).is_file():
            raise UserError(f"{source.location} is neither a git repository nor a folder with an {ENTRY_FILE}.")
        # Links stay links: following them could copy anything that the server's account can read.
        shutil.copytree(source.location, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        return ""


def _is_repository(folder: Path) -> bool:
    return (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir())
