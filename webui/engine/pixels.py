"""Pictures and tensors: the two directions between Pillow and the VAE, and reading the pictures inside a request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webui.core.errors import UserError
from webui.core.pictures import MOST_PIXELS, open_picture
from webui.engine.placement import weight_of

logger = logging.getLogger(__name__)

OVERFLOW = (
    "The VAE made numbers that are not finite (NaN) in half precision, so it now works in full precision: slower, with"
    " twice the memory. A VAE made for half precision avoids that."
)


def read_image(data: bytes, what: str) -> Image.Image:
    """The picture in `data`, RGB or RGBA, upright; raises `UnreadableImage` naming `what`.

    How large it may be was said by the settings before it came into a request; here only Pillow's own limit holds.
    """
    return open_picture(data, MOST_PIXELS, what=f"The {what}")


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture → (1, 3, h, w) float32 in -1…1 on the CPU."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).div_(127.5).sub_(1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, h, w) in -1…1, clamped → N RGB pictures. Waits for the device."""
    scaled = pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in scaled.permute(0, 2, 3, 1).cpu().numpy()]


def encode(vae: Any, pixels: Tensor, scaling_factor: float, *, say: Callable[[str], None] = logger.warning) -> Tensor:
    """(N, 3, h, w) in -1…1 → scaled float32 latents (N, 4, h/8, w/8): the mean of `vae`'s posterior.

    Overflow is met as in `decode`.
    """

    def run() -> Tensor:
        weight = weight_of(vae)
        return vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist.mean.float()

    return _finite(run, vae, say) * scaling_factor


def decode(vae: Any, latents: Tensor, scaling_factor: float, *, say: Callable[[str], None] = logger.warning) -> Tensor:
    """Scaled latents (N, 4, h, w) → pixels (N, 3, 8h, 8w), about -1…1.

    One picture at a time: decoding is where memory peaks, and a batch gains nothing there. A VAE that overflows in half
    precision, as SDXL's first one does, goes on in full precision; `say` is told, and `UserError` raised if that does
    not help.
    """
    scaled = latents / scaling_factor

    def run() -> Tensor:
        rows = scaled.to(weight_of(vae).dtype).split(1)
        return torch.cat([vae.decode(row, return_dict=False)[0] for row in rows])

    return _finite(run, vae, say)


def _finite(run: Callable[[], Tensor], vae: Any, say: Callable[[str], None]) -> Tensor:
    """What `run` makes with `vae`, in full precision where half is not enough: from then on the VAE keeps to it."""
    made = run()
    if torch.isfinite(made).all():
        return made
    if weight_of(vae).dtype != torch.float32:
        say(OVERFLOW)
        with torch.inference_mode(False):  # weights made in it could not be changed outside it
            vae.float()
        made = run()
    if not torch.isfinite(made).all():
        raise UserError(
            "The VAE made numbers that are not finite (NaN), also in full precision; choose another VAE, or None for"
            " the checkpoint's own."
        )
    return made
