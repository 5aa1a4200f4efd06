"""The hashes by which infotexts and web sites name model files, made in the background and kept in the database.

A full hash reads the whole file, so it is begun when a model is loaded and waited for where it is written. Each file is
hashed by a daemon thread of its own at low priority; nothing here loads weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from webui.database.hashes import HashTable

logger = logging.getLogger(__name__)

SHORT = 10
SHORT_AUTOV3 = 12
_BLOCK_BYTES = 1 << 20
_BACKGROUND_NICENESS = 10
_WEIGHT_SUFFIXES = (".safetensors", ".bin")

# A hash that is being made: calling it waits for the digits, "" where the file could not be hashed.
PendingHash = Callable[[], str]


class HashKind(str, Enum):
    """What is hashed: the whole file, or what follows the header of a safetensors file."""

    SHA256 = "sha256"
    AUTOV3 = "autov3"


class ModelHashes:
    """Hashes of files in the state in which they are asked for. Any thread may call any method.

    With a `table`, hashes outlive the program.
    """

    def __init__(self, table: HashTable | None = None) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._known: dict[tuple[Path, HashKind, int, int], Future[str]] = {}

    def short_hash(self, path: Path) -> PendingHash:
        """Begins what A1111 writes as "Model hash": the first ten hexadecimal digits of the file's SHA-256.

        For a diffusers folder, which A1111 does not know, the hash of its weight files' hashes in order of path.
        """
        if path.is_dir():
            parts = [self._begin(file, HashKind.SHA256) for file in _weight_files(path)]
            return lambda: _joined([_digits(part, path) for part in parts])
        part = self._begin(path, HashKind.SHA256)
        return lambda: _digits(part, path)[:SHORT]

    def autov3(self, path: Path) -> PendingHash:
        """Begins the hash by which LoRAs are known: twelve digits of the SHA-256 of all that follows the header.

        Editing a LoRA's metadata leaves it as it is. For files that are not safetensors it is that of the whole file,
        as A1111 does.
        """
        kind = HashKind.AUTOV3 if path.suffix.lower() == ".safetensors" else HashKind.SHA256
        part = self._begin(path, kind)
        return lambda: _digits(part, path)[:SHORT_AUTOV3]

    def known(self, path: Path, kind: HashKind) -> str:
        """The whole digest of the file as it is now, "" where nobody has made it yet; begins nothing."""
        try:
            state = path.stat()
        except OSError:
            return ""
        key = (path, kind, state.st_size, state.st_mtime_ns)
        with self._lock:
            future = self._known.get(key)
        if future is not None and future.done() and future.exception() is None:
            return future.result()
        return self._stored(key) or ""

    def _begin(self, path: Path, kind: HashKind) -> Future[str]:
        """The digest of `path` as it is now; a thread is started where nobody knows it yet."""
        try:
            state = path.stat()
        except OSError as error:
            gone: Future[str] = Future()
            gone.set_exception(error)
            return gone
        key = (path, kind, state.st_size, state.st_mtime_ns)
        with self._lock:
            known = self._known.get(key)
            if known is not None and not (known.done() and known.exception() is not None):
                return known
            future = self._known[key] = Future()
        stored = self._stored(key)
        if stored is not None:
            future.set_result(stored)
            return future
        threading.Thread(target=self._work, args=(key, future), name=f"atelier-hash-{path.name}", daemon=True).start()
        return future

    def _work(self, key: tuple[Path, HashKind, int, int], future: Future[str]) -> None:
        path, kind, size, modified_ns = key
        _yield_to_others()
        try:
            digest = _hash(path, kind, size=size, modified_ns=modified_ns)
        except OSError as error:
            future.set_exception(error)
            return
        future.set_result(digest)
        if self._table is not None:
            try:
                self._table.put(path, kind.value, digest, size=size, modified_ns=modified_ns)
            except SQLAlchemyError as error:
                logger.warning("The hash of %s is not kept for the next start (%s).", path.name, error)

    def _stored(self, key: tuple[Path, HashKind, int, int]) -> str | None:
        if self._table is None:
            return None
        path, kind, size, modified_ns = key
        try:
            return self._table.get(path, kind.value, size=size, modified_ns=modified_ns)
        except SQLAlchemyError as error:
            logger.warning("The hash of %s is made again, for the database cannot be read (%s).", path.name, error)
            return None


def _hash(path: Path, kind: HashKind, *, size: int, modified_ns: int) -> str:
    """The digest of the file; raises OSError where it cannot be read or is not in the given state any more."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if kind is HashKind.AUTOV3:
            _skip_header(file, path, size)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    state = path.stat()
    if (state.st_size, state.st_mtime_ns) != (size, modified_ns):
        raise OSError(f"{path} changed while it was hashed")
    return digest.hexdigest()


def _skip_header(file: BinaryIO, path: Path, size: int) -> None:
    """Reads past a safetensors file's header: eight bytes of length, then that many of JSON."""
    first = file.read(8)
    end = 8 + struct.unpack("<Q", first)[0] if len(first) == 8 else size + 1
    if end > size:
        raise OSError(f"{path} has no safetensors header")
    file.seek(end)


def _digits(future: Future[str], path: Path) -> str:
    try:
        return future.result()
    except OSError as error:
        logger.warning("%s has no hash (%s); infotexts leave it out.", path.name, error)
        return ""


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:SHORT] if all(digests) and digests else ""


def _weight_files(folder: Path) -> list[Path]:
    """The weights in a diffusers folder: its safetensors files, or pickles where there are none."""
    for suffix in _WEIGHT_SUFFIXES:
        if files := sorted(folder.rglob(f"*{suffix}")):
            return files
    return []


def _yield_to_others() -> None:
    """Lowers this thread's priority, where the system has one for each thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)
