"""Pictures that people bring, and pictures as PNG bytes.

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
from PIL.PngImagePlugin import PngInfo

from webui.core.errors import UnreadableImage
from webui.core.infotext import foreign_infotext
from webui.gallery.hidden import hidden_text

_log = logging.getLogger(__name__)

MAX_PIXELS = 2**26
INFOTEXT_KEY = "parameters"

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
_HOW = "use a PNG, JPEG or WebP file"

# TIFF/EP and EXIF 2.3 tags.
_ORIENTATION = 0x0112
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_MAKE = 0x010F
_MODEL = 0x0110

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


def open_picture(source: bytes | Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture, decoded, upright and in mode RGB, or RGBA where it has transparency.

    16-bit grey is scaled to 8 bits; of an animation the first frame is taken. Raises `UnreadableImage` for what is not
    a picture, is damaged, cut off, of a kind without a meaning as colours, or larger than `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        image.load()
        transpose = _turn(image)
        colours = _in_eight_bits(image)
        colours = colours.convert("RGBA" if colours.has_transparency_data else "RGB")
        colours = colours if transpose is None else colours.transpose(transpose)
        colours.info.clear()  # comments and profiles describe the file, not these pixels
        return colours


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; None where it is."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:
        # Pillow meets damaged EXIF with errors of many types. The pixels are whole, and they are what was asked for.
        _log.info("The orientation of a picture is left as it is, because its EXIF data is damaged: %s", error)
        return None


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"The picture holds 32-bit numbers (mode {image.mode}), not colours; {_HOW}.")
    return image


def read_infotext(source: bytes | Path | str, max_pixels: int = MAX_PIXELS) -> str | None:
    """The "parameters" text of a picture, None where it has none.

    Read from the PNG text chunk, the EXIF user comment of JPEG, WebP and AVIF, and the GIF comment; what NovelAI,
    ComfyUI, InvokeAI and Fooocus write comes in the same grammar, as far as it maps. Pixels are only decoded where a
    PNG may have its text behind or in them. Raises `UnreadableImage` as `open_picture` does.
    """
    with _opened(source, max_pixels) as image:
        if image.format == "PNG" and INFOTEXT_KEY not in image.info:
            image.load()
        texts = {key: text for key, text in image.info.items() if isinstance(key, str) and isinstance(text, str)}
        if INFOTEXT_KEY not in texts:
            texts[INFOTEXT_KEY] = _user_comment(image) or _gif_comment(image)
        texts |= _camera_texts(image)
        found = foreign_infotext(texts) or texts[INFOTEXT_KEY]
        if not found and image.format == "PNG" and image.mode == "RGBA":
            hidden = hidden_text(image)
            found = foreign_infotext({INFOTEXT_KEY: hidden}) or hidden
        return found or None


def _gif_comment(image: Image.Image) -> str:
    comment = image.info.get("comment", b"") if image.format == "GIF" else b""
    return comment.decode("utf-8", "replace")


def _camera_texts(image: Image.Image) -> dict[str, str]:
    """ComfyUI's texts in a WebP: "prompt:{…}" where a camera writes its maker and model."""
    values = (image.getexif().get(tag) for tag in (_MAKE, _MODEL)) if image.format == "WEBP" else ()
    pieces = [value.partition(":") for value in values if isinstance(value, str)]
    return {key: text.strip("\0") for key, _, text in pieces if key in ("prompt", "workflow")}


def _user_comment(image: Image.Image) -> str | None:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, str):
        return comment.strip("\0")
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        return text.decode(_utf16_order(text), "replace").strip("\0")
    return text.decode("utf-8", "replace").strip("\0")


def _utf16_order(text: bytes) -> str:
    """The codec of UTF-16 text: EXIF leaves the byte order open, but ASCII letters leave zeros on their high side."""
    if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return "utf-16"
    return "utf-16-le" if text[1::2].count(0) > text[0::2].count(0) else "utf-16-be"


@contextlib.contextmanager
def _opened(source: bytes | Path | str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read; whatever fails while it is open is told as `UnreadableImage`."""
    what = "The data" if isinstance(source, bytes) else f"The file {Path(source).name!r}"
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


def png_bytes(image: Image.Image, infotext: str = "") -> bytes:
    """`image` as PNG, with `infotext` in the text chunk that A1111 reads; "" writes none.

    Pixels come back exactly as they are in modes 1, L, LA, I;16, P, RGB and RGBA; other modes become RGB.
    """
    # A copy, because Pillow keeps what it saves with in the image: two threads saving one image would mix their texts.
    image = image.copy() if image.mode in _PNG_MODES else image.convert("RGB")
    chunks = PngInfo()
    if infotext:
        # Half surrogates have no encoding; losing the picture for one would be worse than a question mark.
        chunks.add_text(INFOTEXT_KEY, infotext.encode("utf-8", "replace").decode("utf-8"))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
