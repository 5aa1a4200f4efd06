"""Making the masked part of a picture anew: what the network is shown, and how the result goes back.

The promise kept here: wherever the blurred mask is 0, the finished picture has the pixels of the picture it began
with, byte for byte (of the resized one where the whole picture is worked on at another size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from webui.core.errors import InvalidRequest
from webui.core.geometry import Box, Size
from webui.core.pictures import flattened
from webui.core.requests import Inpaint, InpaintArea
from webui.engine.img2img import fit
from webui.engine.pixels import read_image

LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True)
class InpaintCanvas:
    """An inpainting job, prepared. `image` (RGB) and `mask` (L, 255 = remake) have the size that is worked at.

    `original` and `blurred` (L) have the size of the finished picture; `box` is where in it the work goes.
    """

    image: Image.Image
    mask: Image.Image
    original: Image.Image
    blurred: Image.Image
    box: Box

    def paste(self, made: Image.Image) -> Image.Image:
        """The finished picture: `made` (of `image`'s size) blended into `original` through the blurred mask."""
        patch = made
        if made.size != (self.box.size.width, self.box.size.height):
            patch = made.resize((self.box.size.width, self.box.size.height), Image.Resampling.LANCZOS)
        whole = self.original.copy()
        whole.paste(patch, (self.box.left, self.box.top))
        return Image.composite(whole, self.original, self.blurred)


def prepare(request: Inpaint) -> InpaintCanvas:
    """Reads, blurs, crops and resizes; raises `UnreadableImage`, or `InvalidRequest` for a mask that cannot be used."""
    original = flattened(read_image(request.init_image, "picture to inpaint"), request.start.background)
    mask = _read_mask(request, original)
    blurred = mask.filter(ImageFilter.GaussianBlur(request.mask_blur)) if request.mask_blur else mask
    reach = blurred.getbbox()
    if reach is None:
        wanted = "black" if request.mask_inverted else "white"
        raise InvalidRequest(
            f"Nothing is to be changed: the mask has no {wanted} in it; paint over what should change."
        )
    if request.area is InpaintArea.MASKED:
        box = _crop_box(Box(*reach), Size(*original.size), request.size, request.padding)
        image = original.crop(box.corners).resize((request.width, request.height), Image.Resampling.LANCZOS)
        shown = blurred.crop(box.corners).resize((request.width, request.height), Image.Resampling.BILINEAR)
        return InpaintCanvas(image, shown, original, blurred, box)
    image = fit(original, request.size, request.resize_mode)
    # Bilinear: a sharper filter would ring, and so touch pixels beyond the mask.
    blurred = fit(blurred, request.size, request.resize_mode, Image.Resampling.BILINEAR)
    return InpaintCanvas(image, blurred, image, blurred, Box(0, 0, request.width, request.height))


def _read_mask(request: Inpaint, original: Image.Image) -> Image.Image:
    mask = read_image(request.mask, "mask")
    if "A" in mask.getbands():
        mask = mask.convert("RGBA")
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    mask = mask.convert("L")
    if mask.size != original.size:
        raise InvalidRequest(
            f"The mask is {mask.width}x{mask.height} and the picture {original.width}x{original.height};"
            " give a mask of the picture's size."
        )
    return ImageChops.invert(mask) if request.mask_inverted else mask


def _crop_box(reach: Box, picture: Size, target: Size, padding: int) -> Box:
    """`reach` with `padding` around it, grown to `target`'s shape as far as the picture has room."""
    left, top = max(0, reach.left - padding), max(0, reach.top - padding)
    right, bottom = min(picture.width, reach.right + padding), min(picture.height, reach.bottom + padding)
    width, height = right - left, bottom - top
    if width * target.height < height * target.width:
        width = min(picture.width, round(height * target.width / target.height))
    else:
        height = min(picture.height, round(width * target.height / target.width))
    left = _slide(left, right, width, picture.width)
    top = _slide(top, bottom, height, picture.height)
    return Box(left, top, left + width, top + height)


def _slide(start: int, end: int, length: int, room: int) -> int:
    """Where a stretch of `length` about the middle of start…end begins, kept within 0…room."""
    return min(max(0, (start + end - length) // 2), room - length)


def latent_mask(mask: Image.Image) -> Tensor:
    """(1, 1, h/8, w/8), 1 for every latent pixel that the mask touches, else 0, on the CPU."""
    cover = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    return (F.max_pool2d(cover, LATENT_PIXELS) > 0).float()


def filled(pixels: Tensor, mask: Image.Image) -> Tensor:
    """`pixels` (1, 3, h, w) with the colours around the mask grown smoothly over what it covers."""
    weight = 1 - torch.from_numpy(np.array(mask, dtype=np.float32))[None, None] / 255
    return _grow(pixels * weight, weight)


def _grow(colour: Tensor, weight: Tensor) -> Tensor:
    """Pull-push interpolation (Gortler et al. 1996, "The Lumigraph", section 3.4): gaps take on a coarser picture.

    `colour` is multiplied by its `weight` (0…1). A picture without any known pixel becomes mid grey, 0.
    """
    if min(colour.shape[-2:]) == 1 or float(weight.min()) == 1.0:
        return torch.where(weight > 0, colour / weight.clamp(min=1e-6), 0)
    half_weight = F.avg_pool2d(weight, 2, ceil_mode=True)
    half_colour = F.avg_pool2d(colour, 2, ceil_mode=True)
    # A coarse pixel counts fully once a quarter of it is known.
    known = (half_weight * 4).clamp(max=1)
    coarse = _grow(half_colour / half_weight.clamp(min=1e-6) * known, known)
    return colour + (1 - weight) * F.interpolate(coarse, colour.shape[-2:], mode="bilinear", align_corners=False)
