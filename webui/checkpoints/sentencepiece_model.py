"""SentencePiece's model files (spiece.model): the pieces and the table of characters, without its library.

The file is a protocol buffer, of which two fields are read; its format is sentencepiece_model.proto of
https://github.com/google/sentencepiece, the wire format https://protobuf.dev/programming-guides/encoding. No torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from webui.core.errors import UnsupportedModel

_MAX_BYTES = 20_000_000
# Field numbers in the file, in a piece, and in what says how characters are normalised.
_PIECE, _NORMALISER = 1, 3
_TEXT, _SCORE = 1, 2
_CHARACTERS = 2
# Kinds of values on the wire.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieces:
    """Each piece with the logarithm of its frequency, by id; and the compiled table of characters, b"" without one."""

    pieces: tuple[tuple[str, float], ...]
    characters: bytes


def read_pieces(path: Path) -> SentencePieces:
    """What the file at `path` holds; raises `UnsupportedModel` for a damaged file or another kind."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UnsupportedModel(f"{path.name} is too large for a tokenizer; move it away.")
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == _PIECE)
        spec = next((value for number, value in fields if number == _NORMALISER), b"")
        characters = next((value for number, value in _fields(spec) if number == _CHARACTERS), b"")
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise UnsupportedModel(f"{path.name} is no SentencePiece model, or is damaged: {error}.") from error
    return SentencePieces(pieces=pieces, characters=characters)


def _piece(message: bytes) -> tuple[str, float]:
    values = dict(_fields(message))
    return values[_TEXT].decode("utf-8"), struct.unpack("<f", values.get(_SCORE, bytes(4)))[0]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The number of each field in `message` with its bytes; numbers of variable length are passed over."""
    place = 0
    while place < len(message):
        tag, place = _number(message, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _number(message, place)
            continue
        if kind == _BYTES:
            size, place = _number(message, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field is of the kind {kind}")
        if place + size > len(message):
            raise ValueError("a field ends behind the file")
        yield tag >> 3, message[place : place + size]
        place += size


def _number(message: bytes, place: int) -> tuple[int, int]:
    """The number of variable length at `place`, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number is longer than 64 bits")
