"""Text hidden in a picture's alpha channel, as NovelAI and "stealth pnginfo" do it.

The lowest bit of each alpha value, column by column from the left, spells: 15 letters that name the kind, the length in
bits as 32 bits with the highest first, then the text in UTF-8, gzipped in one of the two kinds.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_TEXT_BYTES = 2**22

_PLAIN, _ZIPPED = b"stealth_pnginfo", b"stealth_pngcomp"
_HEADER_BITS = (len(_PLAIN) + 4) * 8
_GZIP = 16 + zlib.MAX_WBITS


def hidden_text(image: Image.Image) -> str:
    """The text hidden in `image` (mode RGBA), cut at `MAX_TEXT_BYTES`; "" where there is none or it is damaged."""
    bits = (np.asarray(image.getchannel("A")).T & 1).reshape(-1)
    header = _bytes(bits[:_HEADER_BITS])
    kind, length = header[: len(_PLAIN)], int.from_bytes(header[len(_PLAIN) :], "big")
    if kind not in (_PLAIN, _ZIPPED) or not 0 < length <= len(bits) - _HEADER_BITS:
        return ""
    data = _bytes(bits[_HEADER_BITS : _HEADER_BITS + length])
    if kind == _ZIPPED:
        try:
            data = zlib.decompressobj(_GZIP).decompress(data, MAX_TEXT_BYTES)
        except zlib.error:
            return ""
    return data.decode("utf-8", "replace")


def _bytes(bits: NDArray[np.uint8]) -> bytes:
    return np.packbits(bits).tobytes()
