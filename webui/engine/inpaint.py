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
from webui.engine.outpaint import grown, grown_mask
from webui.engine.pixels import read_image

LATENT_PIXELS = 8

# Soft inpainting: the deviation of the blur over what changed, in pixels, and how steeply it fades at the mask's end.
_SMOOTH = 4
_FADE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class InpaintCanvas:
    """An inpainting job, prepared. `image` (RGB) and `mask` (L, 255 = remake) have the size that is worked at.

    `source` and `source_mask` are the same part of the picture before it was resized to that. `original` (RGB, or RGBA
    where it is not opaque) and `blurred` (L) have the size of the finished picture; `box` is where in it the work goes.
    """

    image: Image.Image
    mask: Image.Image
    source: Image.Image
    source_mask: Image.Image
    original: Image.Image
    blurred: Image.Image
    box: Box

    def paste(self, made: Image.Image, changed: Image.Image | None = None) -> Image.Image:
        """The finished picture: `made` (RGB, of `image`'s size) blended into `original` through the blurred mask.

        With `changed` (L, of any size, over the same part) it is blended through that, but not beyond the mask.
        """
        size = (self.box.size.width, self.box.size.height)
        whole = self.original.convert("RGB")
        whole.paste(_resized(made, size, Image.Resampling.LANCZOS), (self.box.left, self.box.top))
        share = self.blurred
        if changed is not None:
            # What is hardly masked fades out, so that the end of the mask is no edge.
            limit = self.blurred.point([min(255, level * _FADE) for level in range(256)])
            share = Image.new("L", self.blurred.size, 0)
            smooth = _resized(changed, made.size, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(_SMOOTH))
            share.paste(_resized(smooth, size, Image.Resampling.BILINEAR), (self.box.left, self.box.top))
            share = ImageChops.darker(share, limit)
        return _composed(whole, self.original, share)


def prepare(request: Inpaint) -> InpaintCanvas:
    """Reads, grows, blurs, crops and resizes; raises `UnreadableImage`, or `InvalidRequest` for an unusable mask."""
    original = read_image(request.init_image, "picture to inpaint")
    if original.mode == "RGBA" and original.getchannel("A").getextrema() == (255, 255):
        original = original.convert("RGB")
    mask = _read_mask(request, original)
    blur = request.mask_blur, request.mask_blur if request.mask_blur_y is None else request.mask_blur_y
    if request.outpaint.grows:
        mask = grown_mask(mask, request.outpaint, blur)
        original = grown(original, request.outpaint, request.seed)
    blurred = mask.filter(ImageFilter.GaussianBlur(blur)) if any(blur) else mask
    reach = blurred.getbbox()
    if reach is None:
        wanted = "black" if request.mask_inverted else "white"
        raise InvalidRequest(
            f"Nothing is to be changed: the mask has no {wanted} in it; paint over what should change."
        )
    # Bilinear for masks: a sharper filter would ring, and so touch pixels beyond them.
    seen = flattened(original, request.start.background)
    if request.area is InpaintArea.MASKED:
        box = _crop_box(Box(*reach), Size(*original.size), request.size, request.padding)
        seen, cropped = seen.crop(box.corners), blurred.crop(box.corners)
        target = (request.width, request.height)
        return InpaintCanvas(
            image=_resized(seen, target, Image.Resampling.LANCZOS),
            mask=_resized(cropped, target, Image.Resampling.BILINEAR),
            source=seen,
            source_mask=cropped,
            original=original,
            blurred=blurred,
            box=box,
        )
    fitted = fit(blurred, request.size, request.resize_mode, Image.Resampling.BILINEAR)
    return InpaintCanvas(
        image=fit(seen, request.size, request.resize_mode),
        mask=fitted,
        source=seen,
        source_mask=blurred,
        original=fit(original, request.size, request.resize_mode),
        blurred=fitted,
        box=Box(0, 0, request.width, request.height),
    )


def _resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


def _composed(made: Image.Image, original: Image.Image, share: Image.Image) -> Image.Image:
    """`made` (RGB) laid on `original` (RGB or RGBA) as densely as `share` (L) says, all of one size.

    Where `original` is transparent, "over" of Porter & Duff 1984 ("Compositing Digital Images", table 1): what is made
    is opaque, and colours that could not be seen do not bleed into it. Where `share` is 0 every byte stays.
    """
    if original.mode == "RGB":
        return Image.composite(made, original, share)
    laid = made.convert("RGBA")
    laid.putalpha(share)
    return Image.composite(Image.alpha_composite(original, laid), original, share.point([0] + [255] * 255))


def _read_mask(request: Inpaint, original: Image.Image) -> Image.Image:
    if not request.mask and request.outpaint.grows:
        return Image.new("L", original.size, 0)
    mask = flattened(read_image(request.mask, "mask"), "#000000").convert("L")
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


def latent_mask(mask: Image.Image, *, soft: bool = False) -> Tensor:
    """(1, 1, h/8, w/8) on the CPU: 1 for every latent pixel that the mask touches, else 0; or the mean grey, `soft`."""
    cover = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    if soft:
        return F.avg_pool2d(cover, LATENT_PIXELS) / 255
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
