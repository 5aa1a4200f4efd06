"""Reading the pictures that people bring: the one way in for the page, the gallery, the command line and the engine.

Whatever comes in is hostile until decoded: the format is found by content among a short list, the size is checked
before the pixels are, and every failure becomes an `UnreadableImage` sentence. Nothing here writes files.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from webui.core.errors import UnreadableImage

_log = logging.getLogger(__name__)

MAX_PIXELS = 2**26
# Pillow itself refuses more than twice its own warning limit.
MOST_PIXELS = 178_956_970
INFOTEXT_KEY = "parameters"
WHITE = "#ffffff"

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_HOW = "use a PNG, JPEG or WebP file"

# TIFF/EP's tag.
_ORIENTATION = 0x0112

# What undoes each value of the EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: bytes | Path | str, max_pixels: int = MAX_PIXELS, *, what: str = "") -> Image.Image:
    """The picture, decoded, upright and in mode RGB, or RGBA where it has transparency.

    16-bit grey is scaled to 8 bits; of an animation the first frame is taken. A PNG's "parameters" stay in `info`. The
    sentence of an error begins with `what` ("The mask"), else with the file's name. Raises `UnreadableImage` for what
    is not a picture, is damaged, cut off, of a kind without a meaning as colours, or larger than `max_pixels`.
    """
    what = what or _name(source)
    with opened(source, max_pixels, what=what) as image:
        image.load()
        transpose = _turn(image)
        colours = _in_eight_bits(image, what)
        colours = colours.convert("RGBA" if colours.has_transparency_data else "RGB")
        colours = colours if transpose is None else colours.transpose(transpose)
        # Comments and profiles describe the file, not these pixels.
        text = image.info.get(INFOTEXT_KEY)
        colours.info = {INFOTEXT_KEY: text} if isinstance(text, str) else {}
        return colours


def _name(source: bytes | Path | str) -> str:
    return "The data" if isinstance(source, bytes) else f"The file {Path(source).name!r}"


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; None where it is."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:
        # Pillow meets damaged EXIF with errors of many types. The pixels are whole, and they are what was asked for.
        _log.info("The orientation of a picture is left as it is, because its EXIF data is damaged: %s", error)
        return None


def _in_eight_bits(image: Image.Image, what: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"{what} holds 32-bit numbers (mode {image.mode}), not colours; {_HOW}.")
    return image


def flattened(image: Image.Image, background: str = WHITE) -> Image.Image:
    """`image` as RGB; what is transparent is laid on `background` (#rrggbb), as A1111 does."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


@contextlib.contextmanager
def opened(source: bytes | Path | str, max_pixels: int = MAX_PIXELS, *, what: str = "") -> Iterator[Image.Image]:
    """The picture with its header read; whatever fails while it is open is told as `UnreadableImage`."""
    what = what or _name(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_known_formats()) as image:
            _check_size(what, image, max_pixels)
            yield image
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(_too_large(f"{what} has too many pixels", max_pixels)) from error
    except FileNotFoundError as error:
        raise UnreadableImage(f"{what} does not exist; choose another.") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"{what} is not a picture that Atelier can read; {_HOW}.") from error
    except Exception as error:
        # Decoders fail in many ways on damaged input (struct, zlib, index, value, memory errors); all mean this.
        raise UnreadableImage(f"{what} is damaged or not a picture ({error}); {_HOW}.") from error


def _check_size(what: str, image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UnreadableImage(_too_large(f"{what} has {image.width}x{image.height} pixels", max_pixels))


def _too_large(what: str, max_pixels: int) -> str:
    return (
        f"{what}, more than the {max_pixels:,} that are allowed; make it smaller, or raise the limit in the settings."
    )


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
