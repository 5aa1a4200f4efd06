"""What a request starts from, told apart by its type: noise alone, a picture, or a picture with a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.geometry import Size
from webui.core.pictures import flattened
from webui.core.requests import (
    DiffusionRequest,
    Img2Img,
    Inpaint,
    MaskedContent,
    ResizeMode,
    SoftInpainting,
    StartOptions,
    Txt2Img,
)
from webui.engine import inpaint
from webui.engine.colours import ColourCorrection
from webui.engine.denoiser import Denoiser, MaskedDenoiser
from webui.engine.img2img import fit
from webui.engine.latent_resize import enlarge_latents
from webui.engine.pixels import encode, read_image, to_images, to_pixels
from webui.engine.soft_inpaint import SoftlyMaskedDenoiser, changed_share
from webui.engine.unet_input import beside_latents

LATENT_PIXELS = 8

# From a decoded picture (RGB) and the latents (4, h, w) that it was decoded from to the finished picture.
Finish = Callable[[Image.Image, Tensor], Image.Image]


def _as_it_is(image: Image.Image, _: Tensor) -> Image.Image:
    return image


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The start of a request, the same for all its pictures.

    `latents` (1, 4, h, w) is the encoded picture, None for txt2img; `mask` (1, 1, h, w) is 1 where it is remade, None
    for everywhere, and has greys between only for `soft` inpainting. `beside` (1, channels, h, w) is what the
    checkpoint's UNet takes with the latents, None for nothing. `extra_noise` comes on top of the schedule's. `finish`
    takes each decoded picture, and the latents (4, h, w) that it was decoded from, to the finished.
    """

    latents: Tensor | None = None
    mask: Tensor | None = None
    soft: SoftInpainting | None = None
    beside: Tensor | None = None
    content: MaskedContent = MaskedContent.ORIGINAL
    extra_noise: float = 0.0
    finish: Finish = _as_it_is

    def under_noise(self, noise: Tensor, sigma: float) -> Tensor:
        """The latents to denoise: the picture, with what the mask covers replaced as asked, under noise of `sigma`.

        `noise` (N, 4, h, w) is standard normal. Only for a canvas with a picture. A picture that is not denoised,
        `sigma` 0, gets no extra noise either.
        """
        if self.latents is None:
            raise ValueError("a canvas without a picture starts from the sampler's own noise")
        latents = self.latents
        if self.mask is not None and self.content is MaskedContent.LATENT_NOISE:
            latents = torch.lerp(latents, noise, self.mask)
        elif self.mask is not None and self.content is MaskedContent.LATENT_NOTHING:
            latents = latents * (1 - self.mask)
        return torch.add(latents, noise, alpha=sigma + self.extra_noise if sigma > 0 else 0)

    def masked(self, denoiser: Denoiser) -> Denoiser:
        """`denoiser`, which keeps the canvas's picture outside the mask, where there is one."""
        if self.mask is None or self.latents is None:
            return denoiser
        if self.soft is not None:
            return SoftlyMaskedDenoiser(denoiser, self.latents, self.mask, self.soft)
        return MaskedDenoiser(denoiser, self.latents, self.mask)


def make_canvas(
    request: DiffusionRequest, checkpoint: LoadedCheckpoint, device: torch.device, *, tile: int | None = None
) -> Canvas:
    """The canvas of `request`, encoded with a `tile` as `pixels.encode` has it.

    Raises `UnreadableImage` or `InvalidRequest` for pictures that cannot be used, and `UserError` for a checkpoint that
    wants something else to start from.
    """
    if isinstance(request, Txt2Img):
        return Canvas(beside=_on(device, beside_latents(checkpoint, request.size, tile=tile)))
    if isinstance(request, Img2Img):
        return _img2img_canvas(request, checkpoint, device, tile)
    return _inpaint_canvas(request, checkpoint, device, tile)


def _on(device: torch.device, beside: Tensor | None) -> Tensor | None:
    return None if beside is None else beside.to(device)


def _img2img_canvas(request: Img2Img, checkpoint: LoadedCheckpoint, device: torch.device, tile: int | None) -> Canvas:
    picture = flattened(read_image(request.init_image, "picture to start from"), request.start.background)
    image = fit(picture, request.size, request.resize_mode)
    beside = beside_latents(checkpoint, request.size, pixels=to_pixels(image), tile=tile)
    pixels = to_pixels(_to_encode(request, picture, image))
    correct = _correction(request.start, pixels)
    return Canvas(
        latents=_encoded(checkpoint, pixels, request.size, tile).to(device),
        beside=_on(device, beside),
        extra_noise=request.start.extra_noise,
        finish=lambda made, _: correct(made),
    )


def _inpaint_canvas(request: Inpaint, checkpoint: LoadedCheckpoint, device: torch.device, tile: int | None) -> Canvas:
    prepared = inpaint.prepare(request)
    beside = beside_latents(
        checkpoint,
        request.size,
        pixels=to_pixels(prepared.image),
        mask=prepared.mask,
        hidden=request.conditional_mask_weight,
        soft=request.soft.enabled,
        tile=tile,
    )
    pixels = to_pixels(_to_encode(request, prepared.source, prepared.image))
    if request.masked_content is MaskedContent.FILL:
        pixels = inpaint.filled(pixels, _to_encode(request, prepared.source_mask, prepared.mask))
    soft = request.soft if request.soft.enabled else None
    latents = _encoded(checkpoint, pixels, request.size, tile)
    mask = inpaint.latent_mask(prepared.mask, soft=soft is not None)
    correct = _correction(request.start, pixels)

    def finish(made: Image.Image, after: Tensor) -> Image.Image:
        changed = None
        if soft is not None:
            share = changed_share(mask, latents, after[None].to(mask), soft)
            changed = Image.fromarray((share[0, 0] * 255).round().byte().numpy())
        return prepared.paste(correct(made), changed)

    return Canvas(
        latents=latents.to(device),
        mask=mask.to(device),
        soft=soft,
        beside=_on(device, beside),
        content=request.masked_content,
        extra_noise=request.start.extra_noise,
        finish=finish,
    )


def _correction(start: StartOptions, pixels: Tensor) -> Callable[[Image.Image], Image.Image]:
    return ColourCorrection(to_images(pixels)[0]) if start.colour_correction else lambda made: made


def _to_encode(request: Img2Img | Inpaint, own: Image.Image, fitted: Image.Image) -> Image.Image:
    """The picture (or mask) that latents come from: `fitted`, or `own`, before it was fitted, where latents are."""
    if request.resize_mode is not ResizeMode.LATENT:
        return fitted
    sides = (max(1, round(side / LATENT_PIXELS)) * LATENT_PIXELS for side in own.size)
    return fit(own, Size(*sides), ResizeMode.STRETCH)


def _encoded(checkpoint: LoadedCheckpoint, pixels: Tensor, size: Size, tile: int | None) -> Tensor:
    """The latents of `pixels` at those of `size`, on the CPU."""
    latents = encode(checkpoint.vae, pixels, checkpoint.scaling_factor, tile=tile).cpu()
    return enlarge_latents(latents, (size.height // LATENT_PIXELS, size.width // LATENT_PIXELS))
