"""Pictures and tensors: the two directions between Pillow and the VAE, and reading the pictures inside a request."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from webui.core.errors import UnreadableImage
from webui.engine.placement import weight_of


def read_image(data: bytes, what: str) -> Image.Image:
    """The picture in `data`, fully decoded, in its own mode; raises `UnreadableImage` naming `what`."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"The {what} cannot be read ({error}); give a whole PNG, JPEG or WebP file.") from error
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB; what is transparent is laid on white, as A1111 does."""
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture → (1, 3, h, w) float32 in -1…1 on the CPU."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).div_(127.5).sub_(1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, h, w) in -1…1, clamped → N RGB pictures. Waits for the device."""
    scaled = pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in scaled.permute(0, 2, 3, 1).cpu().numpy()]


def encode(vae: Any, pixels: Tensor, scaling_factor: float) -> Tensor:
    """(N, 3, h, w) in -1…1 → scaled float32 latents (N, 4, h/8, w/8): the mean of `vae`'s posterior."""
    weight = weight_of(vae)
    mean = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist.mean
    return mean.float() * scaling_factor


def decode(vae: Any, latents: Tensor, scaling_factor: float) -> Tensor:
    """Scaled latents (N, 4, h, w) → pixels (N, 3, 8h, 8w), about -1…1.

    One picture at a time: decoding is where memory peaks, and a batch gains nothing there.
    """
    scaled = (latents / scaling_factor).to(weight_of(vae).dtype)
    return torch.cat([vae.decode(row, return_dict=False)[0] for row in scaled.split(1)])
