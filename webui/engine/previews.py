"""A forming picture as a small JPEG, by a small decoder where there is one, else by a linear map to colours.

Called from the thread that shows previews, at its own pace; it only reads the latents it was given. On CUDA its work
runs on a stream of its own, which waits for the latents by an event: no step waits for it, nor it for later steps.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from webui.checkpoints.loaded import LatentToRgb
from webui.engine.pixels import to_images

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderTiny

LONGEST_SIDE = 512
LATENT_SCALE = 8
JPEG_QUALITY = 80

Render = Callable[[Tensor], Tensor]
"""Scaled latents (1, C, h, w) → a rough picture (1, 3, H, W) in -1…1 of the same shape, at any scale."""


def by_colours(mapping: LatentToRgb) -> Render:
    """Each latent pixel to one colour: cheap enough for any machine."""
    weights = torch.tensor(mapping.weights)

    def render(latents: Tensor) -> Tensor:
        row = latents[0].float().cpu()
        # Written out, since a matrix product would wake all of torch's threads for a few thousand numbers.
        colours = [(row * weights[:, c, None, None]).sum(0) + mapping.bias[c] for c in range(3)]
        return torch.stack(colours).unsqueeze(0)

    return render


def by_decoder(decoder: DecoderTiny) -> Render:
    """The small decoder's picture, made from shrunken latents where it would come out larger than is shown."""

    def render(latents: Tensor) -> Tensor:
        weight = next(decoder.parameters())
        latents = latents.to(device=weight.device, dtype=weight.dtype)
        factor = LONGEST_SIDE / LATENT_SCALE / max(latents.shape[-2:])
        if factor < 1:
            latents = F.interpolate(latents, scale_factor=factor, mode="area")
        return decoder(latents).float().cpu()

    return render


@torch.inference_mode()
def latents_to_jpeg(latents: Tensor, render: Render) -> bytes:
    """Scaled latents (N, C, h, w) → JPEG of the pictures side by side, at most `LONGEST_SIDE` px long."""
    row = torch.cat(list(latents), dim=-1).unsqueeze(0)
    image = to_images(render(row))[0]
    whole = max(row.shape[-2:]) * LATENT_SCALE
    factor = min(1.0, LONGEST_SIDE / whole) * whole / max(image.size)
    if factor != 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def preview_of(denoised: Tensor, render: Render | None) -> Callable[[], bytes] | None:
    """A closure that renders `denoised` when, and only if, somebody wants to see it; None without a `render`."""
    if render is None:
        return None
    if denoised.device.type != "cuda":
        return functools.partial(latents_to_jpeg, denoised, render)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(denoised.device))
    return functools.partial(_beside_the_steps, ready, denoised, render)


def _beside_the_steps(ready: torch.cuda.Event, denoised: Tensor, render: Render) -> bytes:
    side = _side_stream(denoised.device)
    side.wait_event(ready)
    denoised.record_stream(side)  # its memory is not given to a later step while it is read here
    with torch.cuda.stream(side):
        return latents_to_jpeg(denoised, render)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all previews, as torch keeps freed memory for the stream that it was taken on."""
    return torch.cuda.Stream(device)
