"""The hash by which infotexts name a model: the first ten digits of the file's SHA-256, as A1111 writes it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

SHORT = 10
_BLOCK_BYTES = 1 << 20


def short_hash(path: Path) -> str:
    """Ten hexadecimal digits for the file at `path`; a file that did not change is read once a process.

    For a diffusers folder, which A1111 does not know, the hash of its safetensors files' hashes in order of path.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        return hashlib.sha256("".join(_hash_now(file) for file in files).encode()).hexdigest()[:SHORT]
    return _hash_now(path)[:SHORT]


def _hash_now(path: Path) -> str:
    state = path.stat()
    return _hash(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  # they are the cache's key
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
