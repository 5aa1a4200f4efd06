"""Pictures and tensors: the two directions between Pillow and the VAE, and reading the pictures inside a request."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webui.core.errors import UserError
from webui.core.pictures import MOST_PIXELS, open_picture
from webui.engine.placement import weight_of
from webui.engine.tiled.vae import decode_in_strips, encode_in_strips, working_bytes
from webui.hardware.memory import free_bytes, free_ram_bytes

logger = logging.getLogger(__name__)

OVERFLOW = (
    "The VAE made numbers that are not finite (NaN) in half precision, so it now works in full precision: slower, with"
    " twice the memory. A VAE made for half precision avoids that."
)

LEAST_TILE, LARGEST_TILE = 128, 512


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


def encode(
    vae: Any,
    pixels: Tensor,
    scaling_factor: float,
    *,
    tile: int | None = None,
    say: Callable[[str], None] = logger.warning,
) -> Tensor:
    """(N, 3, h, w) in -1…1 → scaled float32 latents (N, 4, h/8, w/8): the mean of `vae`'s posterior.

    `tile` and overflow are as in `decode`.
    """

    def run() -> Tensor:
        weight = weight_of(vae)
        side = tile or _side(vae, pixels.shape[2] * pixels.shape[3] * pixels.shape[0])
        if side == 0:
            return vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist.mean.float()
        room = free_ram_bytes() // 2
        rows = [encode_in_strips(vae, row, tile=side, memory_bytes=room) for row in pixels.split(1)]
        return torch.cat(rows).to(weight.device).float()

    return _finite(run, vae, say) * scaling_factor


def decode(
    vae: Any,
    latents: Tensor,
    scaling_factor: float,
    *,
    tile: int | None = None,
    say: Callable[[str], None] = logger.warning,
) -> Tensor:
    """Scaled latents (N, 4, h, w) → pixels (N, 3, 8h, 8w), about -1…1.

    One picture at a time: decoding is where memory peaks, and a batch gains nothing there. With a `tile`, it takes as
    much memory as a picture of tile × tile pixels, however large the picture is, and the pixels come in main memory.
    With None it does so only where the picture at once would not fit into what is free.

    A VAE that overflows in half precision, as SDXL's first one does, goes on in full precision; `say` is told, and
    `UserError` raised if that does not help. Raises `DiskFull`.
    """
    scaled = latents / scaling_factor

    def run() -> Tensor:
        rows = scaled.to(weight_of(vae).dtype).split(1)
        side = tile or _side(vae, rows[0].shape[2] * rows[0].shape[3] * _pixels_per_latent(vae))
        if side == 0:
            return torch.cat([vae.decode(row, return_dict=False)[0] for row in rows])
        room = free_ram_bytes() // 2
        return torch.cat([decode_in_strips(vae, row, tile=side, memory_bytes=room) for row in rows])

    return _finite(run, vae, say)


def _pixels_per_latent(vae: Any) -> int:
    return 4 ** (len(vae.config["block_out_channels"]) - 1)


def _side(vae: Any, pixels: int) -> int:
    """The tile to work on `pixels` with, 0 for all of them at once where that fits into three quarters of what is free.

    Tiles take a quarter of it, and are no larger than what gains nothing any more.
    """
    free = free_bytes(weight_of(vae).device)
    if working_bytes(vae, pixels) <= free * 3 // 4:
        return 0
    side = math.isqrt(free // 4 // working_bytes(vae, 1))
    return min(max(side // LEAST_TILE * LEAST_TILE, LEAST_TILE), LARGEST_TILE)


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
