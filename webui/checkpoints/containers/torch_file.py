"""What `torch.save` writes: a ZIP archive of a pickle and an entry a storage; before version 1.6, pickles in a row.

Gives names, shapes and dtypes without unpickling: see `pickle_machine`. The weights themselves are only ever read by
`webui.checkpoints.conversion`, in a process of its own.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from webui.checkpoints.containers.base import BITS, Header, TensorHeader, cut_off, wrongly_described
from webui.checkpoints.containers.pickle_machine import Damaged, Storage, Tensor, WouldRunCode, read_pickle
from webui.checkpoints.containers.state import TooLarge, remarks_of, weights_of
from webui.core.errors import UnsupportedModel

ZIP_START = b"PK\x03\x04"
# Protocol 2 and the magic number that `torch/serialization.py` writes first.
LEGACY_START = b"\x80\x02\x8a\x0a"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# A real description has some hundred kilobytes.
_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_LEGACY_BYTES = 16 * 2**20


def read_torch_zip(path: Path) -> Header:
    """The header of a ZIP archive of torch; raises `UnsupportedModel`, or OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            folder, stream = _described(path, archive)
            entries = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise cut_off(path, f"its ZIP archive cannot be read ({error})") from error
    tree = _pickle(path, stream)[0]
    tensors = _weights(path, tree)
    for name, tensor in tensors.items():
        entry = entries.get(f"{folder}data/{tensor.storage.key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise wrongly_described(path, name)
        _check_storage(path, name, tensor, entry.file_size)
    return _header(path, tree, tensors)


def read_torch_legacy(path: Path) -> Header:
    """The header of a file from before torch 1.6; raises `UnsupportedModel`, or OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        stream = io.BytesIO(file.read(_MAX_LEGACY_BYTES))
    if _pickle(path, stream)[0] != LEGACY_MAGIC:
        raise UnsupportedModel(f"{path.name} is a pickle that torch did not write; it holds no weights we could read.")
    _, system, tree, keys = (_pickle(path, stream)[0] for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedModel(
            f"{path.name} was saved on a machine of another byte order; save it again as safetensors."
        )
    tensors = _weights(path, tree)
    for name, tensor in tensors.items():
        _check_storage(path, name, tensor, tensor.storage.count * BITS[tensor.storage.dtype] // 8)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or not storages.keys() <= {str(key) for key in keys}:
        raise UnsupportedModel(f"{path.name} lacks some of its weights; it is damaged.")
    # Each storage follows as its count in eight bytes and its numbers.
    needed = stream.tell() + sum(8 + storage.count * BITS[storage.dtype] // 8 for storage in storages.values())
    if needed > size:
        raise cut_off(path, f"it needs at least {needed} bytes and has {size}")
    return _header(path, tree, tensors)


def names_in(path: Path) -> frozenset[str]:
    """The functions and classes that the pickle of a torch file names; raises as reading its header does."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            stream = io.BytesIO(file.read(_MAX_LEGACY_BYTES))
        return frozenset().union(*(_pickle(path, stream)[1] for _ in range(4)))
    with zipfile.ZipFile(path) as archive:
        return _pickle(path, _described(path, archive)[1])[1]


def _described(path: Path, archive: zipfile.ZipFile) -> tuple[str, BinaryIO]:
    """The folder in the archive that holds everything, and the pickle that describes it."""
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(pickles) != 1:
        raise UnsupportedModel(
            f"{path.name} is a ZIP archive, but not one of torch; unpack it and choose the model inside."
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise UnsupportedModel(
            f"{path.name} is a TorchScript program, which would run code; use weights as safetensors."
        )
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder")[:6] != b"little":
        raise UnsupportedModel(
            f"{path.name} was saved on a machine of another byte order; save it again as safetensors."
        )
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
        raise UnsupportedModel(
            f"{path.name} has a description of {archive.getinfo(pickles[0]).file_size} bytes; no model has."
        )
    return folder, io.BytesIO(archive.read(pickles[0]))


def _pickle(path: Path, stream: BinaryIO) -> tuple[Any, frozenset[str]]:
    """The next pickle's tree and names."""
    try:
        return read_pickle(stream)
    except WouldRunCode as error:
        raise UnsupportedModel(
            f"{path.name} is a pickle that would run {str(error)[:80]!r} when it is opened, so it stays closed; get"
            " the model as safetensors."
        ) from error
    except Damaged as error:
        raise UnsupportedModel(f"{path.name} is a damaged pickle ({error}); download it again.") from error


def _weights(path: Path, tree: Any) -> dict[str, Tensor]:
    try:
        weights = weights_of(tree, Tensor)
    except TooLarge as error:
        raise UnsupportedModel(f"{path.name} is a pickle with more parts than any model; it is not opened.") from error
    if not weights:
        raise UnsupportedModel(f"{path.name} holds no weights.")
    return weights


def _check_storage(path: Path, name: str, tensor: Tensor, file_bytes: int) -> None:
    stored: Storage = tensor.storage
    stored_bytes = stored.count * BITS[stored.dtype] // 8
    if stored_bytes > file_bytes:
        raise cut_off(path, f"the tensor {name[:80]!r} needs {stored_bytes} bytes, and {file_bytes} are there")
    if math.prod(tensor.shape) * BITS[tensor.dtype] > stored_bytes * 8:
        raise wrongly_described(path, name)


def _header(path: Path, tree: Any, tensors: Mapping[str, Tensor]) -> Header:
    return Header(
        path=path,
        tensors={name: TensorHeader(tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
        metadata=remarks_of(tree),
        container="pickle",
    )
