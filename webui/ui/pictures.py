"""Pictures between files, requests and Gradio's components.

What the page shows is a copy in Gradio's own cache, under a name made from its content: no folder of the disk is opened
to the browser. What comes from the page is a path, which is only read when it lies among the uploads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image, ImageChops

from webui.core.errors import InvalidRequest, UnreadableImage
from webui.core.geometry import Size
from webui.gallery import open_picture, png_bytes


def shown(path: Path) -> str:
    """A copy of the file at `path` that the page may show; the bytes, and with them the parameters, stay the same."""
    if not path.is_file():
        raise UnreadableImage(f"The picture {path.name} is no longer in the output folder.")
    return save_file_to_cache(path, cache_dir=get_upload_folder())


def shown_bytes(png: bytes) -> str:
    """The same for a picture that a request carries."""
    return save_bytes_to_cache(png, "picture.png", cache_dir=get_upload_folder())


def uploaded_path(value: object) -> Path | None:
    """The file of an image component's value, as it comes unprocessed; None when it is empty.

    Raises `InvalidRequest` for a path that is not an upload: it is the browser that names it.
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        return None
    file = Path(path).resolve()
    if not file.is_relative_to(Path(get_upload_folder()).resolve()):
        raise InvalidRequest(f"The file {file.name!r} was not uploaded to this server; choose it again.")
    return file


def uploaded_png(what: str, value: object, max_pixels: int) -> bytes:
    """An image component's value as PNG bytes, upright; raises `InvalidRequest` where empty, `UnreadableImage`."""
    return png_bytes(_uploaded_image(what, value, max_pixels))


def _uploaded_image(what: str, value: object, max_pixels: int) -> Image.Image:
    path = uploaded_path(value)
    if path is None:
        raise InvalidRequest(f"There is no {what}; add one and try again.")
    return open_picture(path, max_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a canvas holds: the `picture` with the paint on it, and the `mask` (white where drawn, of the same size).

    Both are PNG bytes; `mask` is empty where nothing is drawn, neither mask nor paint.
    """

    picture: bytes
    mask: bytes
    size: Size


def canvas_picture(what: str, value: object, max_pixels: int) -> Image.Image:
    """The picture on a canvas without what is drawn; raises `InvalidRequest` where there is none, `UnreadableImage`."""
    return _uploaded_image(what, value.get("picture") if isinstance(value, Mapping) else None, max_pixels)


def drawn_pictures(what: str, value: object, max_pixels: int) -> Drawn:
    """The value of a canvas (see `components.canvas`); raises `InvalidRequest` without a picture, `UnreadableImage`."""
    picture = canvas_picture(what, value, max_pixels)
    drawn = value if isinstance(value, Mapping) else {}
    mask = Image.new("L", picture.size, 0)
    for name in ("paint", "mask"):
        if drawn.get(name) is None:
            continue
        layer = _uploaded_image(name, drawn[name], max_pixels).convert("RGBA")
        if layer.size != picture.size:
            raise InvalidRequest(
                f"What is drawn is {layer.width}x{layer.height} and the picture {picture.width}x{picture.height};"
                " save the picture as PNG, choose it again and draw again."
            )
        mask = ImageChops.lighter(mask, layer.getchannel("A"))
        if name == "paint":
            picture = Image.alpha_composite(picture.convert("RGBA"), layer).convert(picture.mode)
    return Drawn(
        picture=png_bytes(picture), mask=b"" if mask.getbbox() is None else png_bytes(mask), size=Size(*picture.size)
    )
