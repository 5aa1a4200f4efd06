"""What a request starts from, told apart by its type: noise alone, a picture, or a picture with a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.pictures import flattened
from webui.core.requests import DiffusionRequest, Img2Img, Inpaint, MaskedContent, Txt2Img
from webui.engine import inpaint
from webui.engine.denoiser import Denoiser, MaskedDenoiser
from webui.engine.img2img import fit
from webui.engine.pixels import encode, read_image, to_pixels
from webui.engine.unet_input import beside_latents


def _as_it_is(image: Image.Image, latents: Tensor) -> Image.Image:
    return image


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The start of a request, the same for all its pictures.

    `latents` (1, 4, h, w) is the encoded picture, None for txt2img; `mask` (1, 1, h, w) is 1 where it is remade, None
    for everywhere. `beside` (1, channels, h, w) is what the checkpoint's UNet takes with the latents, None for nothing.
    `finish` takes each decoded picture, and the latents (4, h, w) that it was decoded from, to the finished.
    """

    latents: Tensor | None = None
    mask: Tensor | None = None
    beside: Tensor | None = None
    content: MaskedContent = MaskedContent.ORIGINAL
    finish: Callable[[Image.Image, Tensor], Image.Image] = _as_it_is

    def under_noise(self, noise: Tensor, sigma: float) -> Tensor:
        """The latents to denoise: the picture, with what the mask covers replaced as asked, under noise of `sigma`.

        `noise` (N, 4, h, w) is standard normal. Only for a canvas with a picture.
        """
        if self.latents is None:
            raise ValueError("a canvas without a picture starts from the sampler's own noise")
        latents = self.latents
        if self.mask is not None and self.content is MaskedContent.LATENT_NOISE:
            latents = torch.lerp(latents, noise, self.mask)
        elif self.mask is not None and self.content is MaskedContent.LATENT_NOTHING:
            latents = latents * (1 - self.mask)
        return torch.add(latents, noise, alpha=sigma)

    def masked(self, denoiser: Denoiser) -> Denoiser:
        """`denoiser`, which keeps the canvas's picture outside the mask, where there is one."""
        if self.mask is None or self.latents is None:
            return denoiser
        return MaskedDenoiser(denoiser, self.latents, self.mask)


def make_canvas(request: DiffusionRequest, checkpoint: LoadedCheckpoint, device: torch.device) -> Canvas:
    """The canvas of `request`; raises `UnreadableImage` or `InvalidRequest` for pictures that cannot be used.

    Raises `UserError` for a checkpoint that wants something else to start from.
    """
    if isinstance(request, Txt2Img):
        return Canvas(beside=_on(device, beside_latents(checkpoint, request.size)))
    if isinstance(request, Img2Img):
        picture = read_image(request.init_image, "picture to start from")
        image = fit(flattened(picture, request.start.background), request.size, request.resize_mode)
        pixels = to_pixels(image)
        beside = beside_latents(checkpoint, request.size, pixels=pixels)
        latents = encode(checkpoint.vae, pixels, checkpoint.scaling_factor)
        return Canvas(latents=latents.to(device), beside=_on(device, beside))
    return _inpaint_canvas(request, checkpoint, device)


def _on(device: torch.device, beside: Tensor | None) -> Tensor | None:
    return None if beside is None else beside.to(device)


def _inpaint_canvas(request: Inpaint, checkpoint: LoadedCheckpoint, device: torch.device) -> Canvas:
    prepared = inpaint.prepare(request)
    pixels = to_pixels(prepared.image)
    beside = beside_latents(checkpoint, request.size, pixels=pixels, mask=prepared.mask)
    if request.masked_content is MaskedContent.FILL:
        pixels = inpaint.filled(pixels, prepared.mask)
    return Canvas(
        latents=encode(checkpoint.vae, pixels, checkpoint.scaling_factor).to(device),
        mask=inpaint.latent_mask(prepared.mask).to(device),
        beside=_on(device, beside),
        content=request.masked_content,
        finish=lambda made, latents: prepared.paste(made),
    )
