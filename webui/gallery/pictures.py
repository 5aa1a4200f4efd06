"""What pictures say about themselves, and pictures as PNG bytes with their infotext.

Decoding what people bring is the business of `webui.core.pictures`. Nothing here writes files.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from webui.core.infotext import foreign_infotext
from webui.core.pictures import INFOTEXT_KEY, MAX_PIXELS, opened
from webui.gallery.hidden import hidden_text

_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")

# EXIF 2.3 tags.
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_MAKE = 0x010F
_MODEL = 0x0110


def read_infotext(source: bytes | Path | str, max_pixels: int = MAX_PIXELS) -> str | None:
    """The "parameters" text of a picture, None where it has none.

    Read from the PNG text chunk, the EXIF user comment of JPEG, WebP and AVIF, and the GIF comment; what NovelAI,
    ComfyUI, InvokeAI and Fooocus write comes in the same grammar, as far as it maps. Pixels are only decoded where a
    PNG may have its text behind or in them. Raises `UnreadableImage` as `open_picture` does.
    """
    with opened(source, max_pixels) as image:
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
