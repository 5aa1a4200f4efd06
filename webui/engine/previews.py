"""A forming picture as a small JPEG: a linear map from latents to colours, cheap enough for any step.

Called from the thread that shows previews, at its own pace; it only reads the latents it was given.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from webui.checkpoints.loaded import LatentToRgb
from webui.engine.pixels import to_images

LONGEST_SIDE = 512
LATENT_SCALE = 8
JPEG_QUALITY = 80


@torch.inference_mode()
def latents_to_jpeg(latents: Tensor, mapping: LatentToRgb) -> bytes:
    """Scaled latents (N, 4, h, w) → JPEG of the pictures side by side, at most `LONGEST_SIDE` px long."""
    row = torch.cat(list(latents.float().cpu()), dim=-1) if latents.shape[0] > 1 else latents[0].float().cpu()
    weights = torch.tensor(mapping.weights)
    # Written out, since a matrix product would wake all of torch's threads for a few thousand numbers.
    colours = torch.stack([(row * weights[:, c, None, None]).sum(0) + mapping.bias[c] for c in range(3)])
    image = to_images(colours.unsqueeze(0))[0]
    factor = min(LATENT_SCALE, LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def preview_of(denoised: Tensor, mapping: LatentToRgb | None) -> Callable[[], bytes] | None:
    """A closure that renders `denoised` when, and only if, somebody wants to see it; None without a `mapping`."""
    return None if mapping is None else functools.partial(latents_to_jpeg, denoised, mapping)
