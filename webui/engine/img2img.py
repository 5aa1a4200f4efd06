"""Starting from a picture: where on the schedule to begin, and how a picture is fitted into the size asked for."""

from __future__ import annotations

from PIL import Image

from webui.core.geometry import Size
from webui.core.requests import ResizeMode


def first_step(steps: int, strength: float) -> int:
    """The step to begin at, from 0 (all of them) to `steps` (none, so that the picture only passes the VAE).

    A1111's rule: of `steps` noise levels the last ``int(strength · steps) + 1`` are walked. At strength 1 that is all
    of them, and what remains of the picture under that much noise is its overall tone.
    """
    if strength == 0:
        return steps
    return steps - 1 - int(min(strength, 0.999) * steps)


def fit(
    image: Image.Image, size: Size, mode: ResizeMode, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """`image` at exactly `size`: stretched, cropped about its centre, or whole with its edges drawn out to fill."""
    target = (size.width, size.height)
    if image.size == target:
        return image.copy()
    if mode is ResizeMode.STRETCH:
        return image.resize(target, resample)
    factors = size.width / image.width, size.height / image.height
    factor = max(factors) if mode is ResizeMode.CROP else min(factors)
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    scaled = image.resize((width, height), resample)
    left, top = (size.width - width) // 2, (size.height - height) // 2
    if mode is ResizeMode.CROP:
        return scaled.crop((-left, -top, -left + size.width, -top + size.height))
    return _with_edges_drawn_out(scaled, size, left, top)


def _with_edges_drawn_out(image: Image.Image, size: Size, left: int, top: int) -> Image.Image:
    """`image` at (left, top) of a canvas, its outermost rows or columns repeated to the canvas's border."""
    canvas = Image.new(image.mode, (size.width, size.height))
    width, height = image.size
    right, bottom = left + width, top + height
    for edge, box in (
        ((0, 0, width, 1), (left, 0, right, top)),
        ((0, height - 1, width, height), (left, bottom, right, size.height)),
        ((0, 0, 1, height), (0, top, left, bottom)),
        ((width - 1, 0, width, height), (right, top, size.width, bottom)),
    ):
        strip = (box[2] - box[0], box[3] - box[1])
        if min(strip) > 0:
            canvas.paste(image.crop(edge).resize(strip), (box[0], box[1]))
    canvas.paste(image, (left, top))
    return canvas
