"""Making a picture larger at its sides: what the new border starts with, and the mask that says what is new.

The size is `webui.core.requests.rounded_outpaint`'s; what becomes of picture and mask is `inpaint`'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageStat

from webui.core.geometry import Size
from webui.core.requests import Outpaint, rounded_outpaint

# Seams are remade at least one latent pixel deep.
_LEAST_OVERLAP = 8
# Pillow's Gaussian blur ends three deviations away.
_BLUR_REACH = 3


def grown(image: Image.Image, outpaint: Outpaint, seed: int) -> Image.Image:
    """`image` (RGB or RGBA) with its border: its own mirror image, fading outwards into noise of its own colours.

    The mirror image continues what is there; the noise keeps the far border from becoming a second subject. `seed`
    makes it the same each time.
    """
    sides = rounded_outpaint(Size(*image.size), outpaint)
    around = (sides.top, sides.bottom), (sides.left, sides.right)
    mirrored = np.pad(np.asarray(image), (*around, (0, 0)), mode="symmetric")
    far = np.maximum(
        _distances(image.height, sides.top, sides.bottom)[:, None],
        _distances(image.width, sides.left, sides.right)[None, :],
    )
    new = far > 0
    share, border = far[new][:, None], mirrored[new]
    # Statistics from histograms: arrays of floats of the whole picture would be eight times its size.
    colours = ImageStat.Stat(image.convert("RGB"))
    noise = np.random.default_rng(seed).normal(colours.mean, colours.stddev, (len(border), 3))
    border[:, :3] = np.clip(np.rint(border[:, :3] * (1 - share) + noise * share), 0, 255)
    mirrored[new] = border
    return Image.fromarray(mirrored)


def grown_mask(mask: Image.Image, outpaint: Outpaint, blur: tuple[int, int]) -> Image.Image:
    """`mask` (L, of the picture before it grew) with everything new masked as well.

    So is a strip of the picture along each new border, so wide that a mask blurred by `blur` (x, y; pixels) covers
    the border whole.
    """
    picture = Size(*mask.size)
    sides = rounded_outpaint(picture, outpaint)
    size = Size(picture.width + sides.left + sides.right, picture.height + sides.top + sides.bottom)
    whole = Image.new("L", (size.width, size.height), 255)
    left, right = _kept(picture.width, sides.left, sides.right, blur[0])
    top, bottom = _kept(picture.height, sides.top, sides.bottom, blur[1])
    whole.paste(mask, (sides.left, sides.top))
    if left < right and top < bottom:
        strips = Image.new("L", whole.size, 255)
        strips.paste(0, (left, top, right, bottom))
        return ImageChops.lighter(whole, strips)
    return Image.new("L", whole.size, 255)


def _kept(length: int, before: int, after: int, blur: int) -> tuple[int, int]:
    """From where to where a side of `length` pixels stays, with `before` and `after` new ones at its ends."""
    overlap = max(_LEAST_OVERLAP, _BLUR_REACH * blur)
    return before + (overlap if before else 0), before + length - (overlap if after else 0)


def _distances(length: int, before: int, after: int) -> NDArray[np.float64]:
    """For each pixel of a grown side how far out it lies: 0 within the picture, 1 at the border's end."""
    return np.concatenate(
        [np.arange(before, 0, -1) / max(1, before), np.zeros(length), np.arange(1, after + 1) / max(1, after)]
    )
