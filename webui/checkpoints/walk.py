"""The files of a models folder, in an order that does not depend on the disk, and which of them are of a kind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

CHECKPOINT_FOLDER = "Stable-diffusion"


def files_below(root: Path) -> Iterator[Path]:
    """The files below `root` in order of path; links are followed, but not back up the tree."""
    entered: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(place, name) for name in sorted(files))


class Recognised:
    """Which files are what `recognise` looks for; it reads a file again only when that has changed.

    Any thread may ask.
    """

    def __init__(self, recognise: Callable[[Path], bool]) -> None:
        self._recognise = recognise
        self._lock = threading.Lock()
        self._known: dict[tuple[Path, int, int], bool] = {}

    def among(self, candidates: Iterable[tuple[str, Path]]) -> dict[str, Path]:
        """Those of the named files that are recognised; the first of a name counts, and dangling links do not."""
        with self._lock:
            known: dict[tuple[Path, int, int], bool] = {}
            files: dict[str, Path] = {}
            for name, path in candidates:
                try:
                    state = path.stat()
                except OSError:
                    continue
                key = (path, state.st_size, state.st_mtime_ns)
                known[key] = self._known[key] if key in self._known else self._recognise(path)
                if known[key]:
                    files.setdefault(name, path)
            self._known = known
            return files
