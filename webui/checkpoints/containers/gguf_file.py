"""GGUF: a table of values, a table of tensors, the weights; city96's converter writes UNets and transformers so.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here with bounds of our own, as
the `gguf` package trusts what it reads; that package then unpacks the numbers (`webui.checkpoints.weights`).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from webui.checkpoints.containers.base import Header, TensorHeader, cut_off, wrongly_described
from webui.core.errors import UnsupportedModel

GGUF_START = b"GGUF"

_MAX_ENTRIES = 200_000
_MAX_TEXT_BYTES = 2**24
_MAX_KEPT_TEXT = 10_000
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
# The sizes that city96's converter had to change are kept under this name.
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True, slots=True)
class BlockType:
    """How numbers are packed: `numbers` of them take `bytes`; `number` is the type's own in GGUF."""

    number: int
    name: str
    numbers: int
    bytes: int


_TYPES = {
    kind.number: kind
    for kind in (
        BlockType(0, "F32", 1, 4),
        BlockType(1, "F16", 1, 2),
        BlockType(2, "Q4_0", 32, 18),
        BlockType(3, "Q4_1", 32, 20),
        BlockType(6, "Q5_0", 32, 22),
        BlockType(7, "Q5_1", 32, 24),
        BlockType(8, "Q8_0", 32, 34),
        BlockType(10, "Q2_K", 256, 84),
        BlockType(11, "Q3_K", 256, 110),
        BlockType(12, "Q4_K", 256, 144),
        BlockType(13, "Q5_K", 256, 176),
        BlockType(14, "Q6_K", 256, 210),
        BlockType(20, "IQ4_NL", 32, 18),
        BlockType(23, "IQ4_XS", 256, 136),
        BlockType(30, "BF16", 1, 2),
    )
}


@dataclass(frozen=True, slots=True)
class Packed:
    """Where one tensor's numbers lie in the file, and how they are packed."""

    start: int
    size: int
    kind: BlockType
    shape: tuple[int, ...]


class _Reader:
    """Reads little-endian values; raises EOFError at the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise EOFError("its tables go on past its end")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > _MAX_TEXT_BYTES:
            raise EOFError(f"it holds a text of {length} bytes")
        return self.bytes(length).decode("utf-8")

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _TEXT:
            return [self.text() for _ in range(min(count, self.size))]
        width = struct.calcsize(_SCALARS[inner])
        if count * width > self.size:
            raise EOFError(f"it holds a list of {count} numbers")
        return list(struct.unpack(f"<{count}{_SCALARS[inner][1]}", self.bytes(count * width)))

    def position(self) -> int:
        return self._file.tell()


def read_gguf(path: Path) -> tuple[Header, Mapping[str, Packed]]:
    """The checked header of the file at `path`, and where each tensor lies; raises `UnsupportedModel`, or OSError."""
    with path.open("rb") as file:
        reader = _Reader(file)
        try:
            return _parse(path, reader)
        except (EOFError, MemoryError) as error:
            raise cut_off(path, str(error)) from error
        except (struct.error, KeyError, ValueError) as error:
            raise UnsupportedModel(f"{path.name} has a damaged GGUF header ({error}); download it again.") from error


def _parse(path: Path, reader: _Reader) -> tuple[Header, Mapping[str, Packed]]:
    reader.bytes(4)
    version, tensor_count, value_count = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path.name} is GGUF of version {version}; Atelier reads versions 2 and 3.")
    if max(tensor_count, value_count) > _MAX_ENTRIES:
        raise ValueError(f"{tensor_count} tensors and {value_count} values")
    values = {reader.text(): reader.value() for _ in range(value_count)}
    rows = [_row(reader) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise ValueError(f"an alignment of {str(alignment)[:20]}")
    start = -(-reader.position() // alignment) * alignment
    packed = {name: _packed(path, name, row, start, values, reader.size) for name, *row in rows}
    if not packed:
        raise UnsupportedModel(f"{path.name} holds no weights.")
    header = Header(
        path=path,
        tensors={name: TensorHeader(entry.kind.name, entry.shape) for name, entry in packed.items()},
        metadata={key: str(value) for key, value in values.items() if _is_remark(value)},
        container="gguf",
    )
    return header, packed


def _row(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (GGUF writes the fastest dimension first), type and place of one tensor."""
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > 8:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    return name, shape, reader.number("<I"), reader.number("<Q")


def _packed(path: Path, name: str, row: list[Any], start: int, values: Mapping[str, Any], file_size: int) -> Packed:
    shape, number, offset = row
    kind = _TYPES.get(number)
    if kind is None:
        raise UnsupportedModel(
            f"{path.name} packs the tensor {name[:80]!r} as GGUF type {number}, which Atelier does not know."
        )
    count = math.prod(shape)
    if count % kind.numbers:
        raise wrongly_described(path, name)
    size = count // kind.numbers * kind.bytes
    if start + offset + size > file_size:
        raise cut_off(
            path, f"the tensor {name[:80]!r} ends at byte {start + offset + size}, and the file has {file_size}"
        )
    original = values.get(_ORIGINAL_SHAPE + name, shape)
    if not isinstance(original, (list, tuple)) or math.prod(original) != count or any(side < 0 for side in original):
        raise wrongly_described(path, name)
    return Packed(start + offset, size, kind, tuple(original))


def _is_remark(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _MAX_KEPT_TEXT)
