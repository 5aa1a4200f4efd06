"""Pictures between files, requests and Gradio's components.

What the page shows is a copy in Gradio's own cache, under a name made from its content: no folder of the disk is opened
to the browser. What comes from the page is a path that Gradio has checked to be an upload.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image, ImageChops

from webui.core.errors import InvalidRequest, UnreadableImage
from webui.gallery import open_picture, png_bytes

_MASK_THRESHOLD = 24  # of 255; strokes are drawn half transparent, their soft rims count as well


def shown(path: Path) -> str:
    """A copy of the file at `path` that the page may show; the bytes, and with them the parameters, stay the same."""
    if not path.is_file():
        raise UnreadableImage(f"The picture {path.name} is no longer in the output folder.")
    return save_file_to_cache(path, cache_dir=get_upload_folder())


def shown_bytes(png: bytes) -> str:
    """The same for a picture that a request carries."""
    return save_bytes_to_cache(png, "picture.png", cache_dir=get_upload_folder())


def uploaded_path(value: object) -> Path | None:
    """The file of an image component's value, as it comes unprocessed; None when it is empty."""
    path = value.get("path") if isinstance(value, dict) else value
    return Path(path) if isinstance(path, str) and path else None


def uploaded_png(what: str, value: object, max_pixels: int) -> bytes:
    """An image component's value as PNG bytes, upright; raises `InvalidRequest` where empty, `UnreadableImage`."""
    path = uploaded_path(value)
    if path is None:
        raise InvalidRequest(f"There is no {what}; add one and try again.")
    return png_bytes(open_picture(path, max_pixels))


def editor_pictures(value: dict[str, Any] | None) -> tuple[bytes, bytes]:
    """The picture and the mask (white where drawn, of the picture's size) of an editor's value with PIL images.

    Raises `InvalidRequest` where there is no picture or nothing is drawn on it.
    """
    background = value.get("background") if value else None
    if value is None or not isinstance(background, Image.Image):
        raise InvalidRequest("There is no picture to inpaint; add one and draw over what should change.")
    mask = Image.new("L", background.size, 0)
    for layer in value.get("layers") or []:
        alpha = layer.convert("RGBA").getchannel("A")
        drawn = alpha.point([255 if level >= _MASK_THRESHOLD else 0 for level in range(256)])
        mask = ImageChops.lighter(mask, drawn if drawn.size == mask.size else drawn.resize(mask.size))
    if mask.getbbox() is None:
        raise InvalidRequest("Nothing is masked; draw over the part of the picture that should change.")
    return png_bytes(_opaque(background)), png_bytes(mask)


def _opaque(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode != "RGB" else image


def editor_value(picture: str | None) -> dict[str, Any] | None:
    """What an editor is given to show `picture` with nothing drawn on it."""
    return None if picture is None else {"background": picture, "layers": [], "composite": None}


def mask_layer(mask: bytes, opacity: float) -> bytes:
    """The layer (PNG) that an editor shows for a `mask` (PNG, white where drawn): white of `opacity` from 0 to 1."""
    with Image.open(io.BytesIO(mask)) as opened:
        drawn = opened.convert("L")
    layer = Image.new("RGBA", drawn.size, (255, 255, 255, 0))
    layer.putalpha(drawn.point([round(level * opacity) for level in range(256)]))
    return png_bytes(layer)
