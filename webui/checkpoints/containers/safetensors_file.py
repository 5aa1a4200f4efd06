"""Safetensors: a length, a JSON table of tensors, the weights. https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

from webui.checkpoints.containers.base import BITS, MAX_DIMENSIONS, Header, TensorHeader, cut_off, wrongly_described
from webui.core.errors import UnsupportedModel

# The limit of the reference implementation; a real header has a few hundred kilobytes.
MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> Header:
    """The checked header of the safetensors file at `path`; raises `UnsupportedModel`, or OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise cut_off(path, f"it has {size} bytes")
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise UnsupportedModel(
                f"{path.name} says that its header has {length} bytes, and the file has {size}; it is cut off or"
                " not a safetensors file. Download it again."
            )
        raw = file.read(length)
    return _parse(path, raw, size - 8 - length)


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


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _tensor(path: Path, name: str, value: Any, data_bytes: int) -> TensorHeader:
    try:
        dtype, shape = value["dtype"], tuple(value["shape"])
        start, end = value["data_offsets"]
        whole = len(shape) <= MAX_DIMENSIONS and all(_is_size(number) for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError) as error:
        raise wrongly_described(path, name) from error
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise UnsupportedModel(
            f"{path.name} keeps the tensor {name[:80]!r} in the format {str(dtype)[:20]}, which Atelier does not know."
        )
    if not whole or (end - start) * 8 != bits * math.prod(shape):
        raise wrongly_described(path, name)
    if end > data_bytes:
        raise cut_off(
            path, f"the tensor {name[:80]!r} ends at byte {end} of the weights, and only {data_bytes} are there"
        )
    return TensorHeader(dtype, shape)
