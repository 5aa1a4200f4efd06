"""Finished pictures on disk: ``outputs/<task>/<date>/<number>-<seed>.png``, each whole or not there.

Owns names and sequence numbers. Any number of threads and processes may save into the same folder: the temporary file
of a number is also its reservation. Which job a picture belongs to is the business of the database.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from PIL import Image

from webui.core import durable
from webui.core.errors import DiskFull
from webui.core.filenames import DEFAULT_PATTERN, NamePattern
from webui.gallery.pictures import png_bytes

SUFFIX = ".png"
MIN_FREE_BYTES = 16 * 2**20

_TASK = re.compile(r"[a-z0-9_-]+")
_log = logging.getLogger(__name__)


class ImageFiles:
    """Saves pictures below `outputs`; every method may be called from any thread.

    `pattern` is the setting of that name, or a function that returns it as it is now. `today` is the local date.
    """

    def __init__(
        self,
        outputs: Path,
        pattern: Callable[[], str] | str = DEFAULT_PATTERN,
        *,
        today: Callable[[], date] = date.today,
    ) -> None:
        self.outputs = outputs
        self._pattern = pattern
        self._today = today

    def save(self, image: Image.Image, *, task: str, seed: int, infotext: str) -> Path:
        """Writes `image` with its infotext and returns its path; when it returns, the file survives a power cut.

        Never overwrites. Raises `DiskFull` where the folder cannot be written or is full, `UserError` for a file name
        pattern that cannot be used, and ValueError for a `task` that is not a plain folder name.
        """
        if not _TASK.fullmatch(task):
            raise ValueError(f"The task {task!r} cannot name a folder.")
        pattern = NamePattern.parse(self._pattern if isinstance(self._pattern, str) else self._pattern())
        data = png_bytes(image, infotext)
        folder = self.outputs / task / self._today().isoformat()
        with self._told_as_disk_full(folder):
            durable.make_folder(folder)
            return _write_new(folder, pattern, seed, data)

    def save_at(self, image: Image.Image, path: Path, *, infotext: str) -> bool:
        """Writes `image` as PNG to `path`, in any folder, as safely as `save`; raises `DiskFull` as it does.

        Returns False where there is a file already, and leaves it: nothing is overwritten.
        """
        data = png_bytes(image, infotext)
        with self._told_as_disk_full(path.parent):
            durable.make_folder(path.parent)
            temporary = durable.temporary_path(path.parent, path.name)
            durable.remove_leftover(temporary)  # of a crash; `sweep` does not come to folders of others
            with durable.new_temporary(temporary) as descriptor:
                durable.fill(descriptor, data)
                with contextlib.suppress(FileExistsError):
                    durable.publish(temporary, path)
                    return True
        return False

    def check_writable(self) -> None:
        """Makes sure that pictures can be saved, by writing a small file; raises `DiskFull` saying why not."""
        with self._told_as_disk_full(self.outputs):
            durable.make_folder(self.outputs)
            with durable.new_temporary(durable.fresh_temporary_path(self.outputs, "check")) as descriptor:
                durable.fill(descriptor, b"Atelier was here to see whether it can write.\n")
            free = shutil.disk_usage(self.outputs).free
        if free < MIN_FREE_BYTES:
            raise DiskFull(f"{self.outputs} has only {free // 2**20} MB of disk left; free some and try again.")

    def sweep(self) -> int:
        """Removes what a crash left unfinished and returns how many files; those being written now are left alone.

        Raises `DiskFull` where the folder cannot be changed.
        """
        with self._told_as_disk_full(self.outputs):
            removed = durable.sweep(self.outputs)
        if removed:
            _log.info("Removed %d unfinished pictures that a crash had left in %s.", removed, self.outputs)
        return removed

    @staticmethod
    @contextlib.contextmanager
    def _told_as_disk_full(folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise DiskFull(
                f"Pictures cannot be saved in {folder}: {reason}. Free space, or allow writing there, and try again."
            ) from error


def _write_new(folder: Path, pattern: NamePattern, seed: int, data: bytes) -> Path:
    number = max(_numbers(folder, pattern), default=0) + 1
    while True:
        try:
            # The temporary name is made of the number alone, so that two writers cannot hold one number.
            temporary = durable.temporary_path(folder, f"{number:05d}")
            with durable.new_temporary(temporary) as descriptor:
                if number not in _numbers(folder, pattern):
                    path = folder / (pattern.stem(number=number, seed=seed) + SUFFIX)
                    durable.fill(descriptor, data)
                    durable.publish(temporary, path)
                    return path
        except FileExistsError:
            pass  # another writer holds the number, or a file of another pattern has the name
        number += 1


def _numbers(folder: Path, pattern: NamePattern) -> set[int]:
    """The numbers that pictures of this pattern in `folder` have."""
    found = (pattern.number_in(path.stem) for path in folder.iterdir())
    return {number for number in found if number is not None}
