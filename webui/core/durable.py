"""Files that are whole or not there: written under a temporary name, forced to disk, then given their own name.

Owns the rules that make this hold through `kill -9`, a full disk and several processes at once; whoever writes a file
that must not be lost writes it here. A temporary file begins with a point and ends with `TEMPORARY_SUFFIX`; the process
that writes it holds a lock on it, so that `sweep` can tell leftovers of a crash from files in the making. POSIX only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".part"

# Filesystems without hard links, such as exFAT and some network shares, answer with one of these.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
# Some network filesystems cannot force a folder to disk and say so.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


def temporary_path(folder: Path, name: str) -> Path:
    """The temporary file `name` of `folder`. Two writers that choose the same name exclude each other."""
    return folder / f".{name}{TEMPORARY_SUFFIX}"


def fresh_temporary_path(folder: Path, name: str) -> Path:
    """A temporary file for `name` that no other writer chooses."""
    return temporary_path(folder, f"{name}-{uuid.uuid4().hex[:12]}")


@contextlib.contextmanager
def new_temporary(path: Path) -> Iterator[int]:
    """Creates `path` and yields its descriptor, locked; at the end the file is gone, whatever became of it.

    Raises FileExistsError where another writer holds the name, and OSError where the folder cannot be written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # a sweep came between creating and locking, and took it for a leftover
    try:
        yield descriptor
    finally:
        if _is_open_as(path, descriptor):
            path.unlink()
        os.close(descriptor)


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def fill(descriptor: int, data: bytes) -> None:
    """Writes all of `data` and waits until it is on the disk; raises OSError, as for a full one."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Gives the filled file its name and waits until the folder knows it; raises FileExistsError, never overwrites.

    Where the filesystem has no hard links, only writers that keep to the same temporary name are kept apart.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Writes `path` anew: a reader, or a crash at any moment, finds the old bytes or the new ones. Raises OSError."""
    temporary = fresh_temporary_path(path.parent, path.name)
    with new_temporary(temporary) as descriptor:
        fill(descriptor, data)
        temporary.replace(path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Creates `folder` and those above it, each known to its parent on the disk; raises OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        sync_folder(place.parent)
    folder.mkdir(exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk, where its filesystem can do that; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Removes temporary files below `folder` that no living process writes; returns how many. Raises OSError."""
    return sum(
        remove_leftover(Path(place) / name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)
    )


def remove_leftover(path: Path) -> bool:
    """Removes the temporary file `path` if it is there and no living process writes it; says so. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # published or removed by its writer since the folder was listed
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:
            return False
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
