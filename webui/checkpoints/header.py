"""Reads the header of a safetensors file: names, shapes, dtypes and metadata, without torch and without weights.

Format: https://github.com/huggingface/safetensors#format. Files come from strangers, so every length and offset is
checked against the file's real size before it is believed; what fails the check is told in one sentence.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui.core.errors import UnsupportedModel

# The limit of the reference implementation; a real header has a few hundred kilobytes.
MAX_HEADER_BYTES = 100_000_000

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor's dtype, as safetensors writes it ("F16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a safetensors file says about itself."""

    path: Path
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]

    def shape(self, key: str) -> tuple[int, ...] | None:
        """The shape of the tensor `key`, None when there is none."""
        tensor = self.tensors.get(key)
        return None if tensor is None else tensor.shape

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with `prefix`."""
        return any(key.startswith(prefix) for key in self.tensors)


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file at `path`; raises `UnsupportedModel` with a sentence."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            first = file.read(8)
            _check_start(path, first, size)
            length = struct.unpack("<Q", first)[0]
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise UnsupportedModel(
                    f"{path.name} says that its header has {length} bytes, and the file has {size}; it is cut off or"
                    " not a safetensors file. Download it again."
                )
            raw = file.read(length)
    except OSError as error:
        raise UnsupportedModel(f"{path.name} cannot be read: {error.strerror or error}.") from error
    return _parse(path, raw, size - 8 - length)


def _check_start(path: Path, first: bytes, size: int) -> None:
    if size == 0:
        raise UnsupportedModel(f"{path.name} is empty (0 bytes); download it again.")
    if first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UnsupportedModel(
            f"{path.name} is a PyTorch pickle, which can run programs when it is opened; convert it to safetensors."
        )
    if len(first) < 8:
        raise UnsupportedModel(f"{path.name} has only {size} bytes, too few for a model; download it again.")


def _parse(path: Path, raw: bytes, data_bytes: int) -> Header:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(
            f"{path.name} does not begin with a safetensors header; it is damaged or another kind of file."
        ) from error
    if not isinstance(values, dict):
        raise UnsupportedModel(f"{path.name} has a header that is not a table of tensors; it is damaged.")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsupportedModel(f"{path.name} has metadata that is not text; it is damaged.")
    tensors = {name: _tensor(path, name, value, data_bytes) for name, value in values.items()}
    if not tensors:
        raise UnsupportedModel(f"{path.name} holds no weights.")
    return Header(path=path, tensors=tensors, metadata=metadata)


def _tensor(path: Path, name: str, value: Any, data_bytes: int) -> TensorHeader:
    try:
        dtype, shape = value["dtype"], tuple(value["shape"])
        start, end = value["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError) as error:
        raise UnsupportedModel(f"{path.name} describes the tensor {name[:80]!r} wrongly; it is damaged.") from error
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise UnsupportedModel(
            f"{path.name} keeps the tensor {name[:80]!r} in the format {str(dtype)[:20]}, which Atelier does not know."
        )
    if not whole or (end - start) * 8 != bits * math.prod(shape):
        raise UnsupportedModel(f"{path.name} describes the tensor {name[:80]!r} wrongly; it is damaged.")
    if end > data_bytes:
        raise UnsupportedModel(
            f"{path.name} is cut off: the tensor {name[:80]!r} ends at byte {end} of the weights, and only"
            f" {data_bytes} are there. Download it again."
        )
    return TensorHeader(dtype, shape)
