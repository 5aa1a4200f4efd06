"""Enlarging by a diffusion model that sees the small picture: Stable Diffusion's x4 upscaler, in tiles.

Its UNet takes the picture, under a little noise, beside latents that are as large as the picture itself, and is told
how much noise that is (Ho et al. 2021, arXiv 2106.15282, section 3: conditioning augmentation). Schedule and scheduler
are those of diffusers' StableDiffusionUpscalePipeline: DDIM on every n-th timestep, down to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from webui.core.geometry import Size
from webui.core.ports import Control
from webui.core.requests import DiffusionUpscaler, Extras, Guidance, NoiseSource, SamplerOptions, TileBlend
from webui.engine.denoise import denoise
from webui.engine.denoiser import NetworkDenoiser
from webui.engine.guidance import Guided
from webui.engine.noise import brought, open_stream
from webui.engine.pixels import decode, to_images, to_pixels
from webui.engine.samplers import find_sampler, unit_variance_start
from webui.engine.tiled.diffusion import TiledUNet
from webui.engine.upscale.upscalers import Enlarging, pass_sizes, resized

if TYPE_CHECKING:
    from webui.engine.bench import Bench
    from webui.engine.conditioning import PromptPlan

SCALE = 4
LATENT_CHANNELS = 4
_SAMPLER = "DDIM"


class DiffusionEnlarger:
    """Enlarges by the checkpoint that `lay_out` puts on a bench; implements `webui.engine.upscale.upscalers.Upscaler`.

    `words` encodes the prompts on that bench. The UNet works in tiles of at most `tile` pixels of the small picture
    that share `overlap` (0 takes it whole), joined at every step, so that no seam can form.
    """

    def __init__(
        self,
        lay_out: Callable[[], AbstractContextManager[Bench]],
        words: Callable[[Bench], PromptPlan],
        wish: DiffusionUpscaler,
        *,
        tile: int,
        overlap: int,
    ) -> None:
        self._lay_out = lay_out
        self._words = words
        self._wish = wish
        self._tile = tile
        self._overlap = overlap

    def steps(self, size: Size, target: Size) -> int:
        """The model's for each pass; one where nothing has to be enlarged."""
        return max(1, len(pass_sizes(size, target, SCALE)) * self._wish.steps)

    def enlarge(self, image: Image.Image, target: Size) -> Enlarging:
        """`image` through the model until it is large enough, then by Lanczos to exactly `target`."""
        passes = pass_sizes(Size(*image.size), target, SCALE)
        if not passes:
            yield None
            return resized(image, target)
        # Loaded weights outlive this picture, so they must not be made as tensors of inference alone.
        with torch.inference_mode(mode=False), self._lay_out() as bench:
            plan = self._words(bench)
            for start in passes:
                image = yield from self._one_pass(bench, plan, resized(image, start))
        return resized(image, target)

    @torch.inference_mode()
    def _one_pass(self, bench: Bench, plan: PromptPlan, image: Image.Image) -> Enlarging:
        made = yield from upscale_by_diffusion(
            bench, plan, to_pixels(image), self._wish, tile=self._tile, overlap=self._overlap
        )
        return to_images(made)[0]


def upscale_by_diffusion(
    bench: Bench, plan: PromptPlan, pixels: Tensor, wish: DiffusionUpscaler, *, tile: int, overlap: int
) -> Generator[None, None, Tensor]:
    """(1, 3, h, w) in -1…1 → (1, 3, 4h, 4w), about -1…1; yields after each step. To be run without gradients.

    Noise is drawn from the seed for the small picture first, then for the latents. Raises `UserError` for numbers that
    are not finite.
    """
    checkpoint, device = bench.checkpoint, bench.device
    stream = open_stream(wish.seed, NoiseSource.CPU, device)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return brought(stream(shape).unsqueeze(0), device)

    kept = float(checkpoint.alphas_cumprod[wish.noise_level])
    seen = pixels.to(device) * math.sqrt(kept) + draw(tuple(pixels.shape[1:])) * math.sqrt(1 - kept)
    noise = draw((LATENT_CHANNELS, *pixels.shape[2:]))

    timesteps, sigmas = noise_levels(checkpoint.alphas_cumprod, wish.steps)
    unet = TiledUNet(_Told(checkpoint.unet, wish.noise_level), TileBlend.MIXTURE, tile, overlap)
    predict = Guided(unet, plan, cfg_scale=wish.cfg_scale, guidance=Guidance(), evaluations=wish.steps, beside=seen)
    denoiser = NetworkDenoiser(
        predict,
        checkpoint.prediction_type,
        timestep=dict(zip(sigmas, timesteps, strict=False)).__getitem__,
        sigmas=sigmas[:-1],
        device=device,
    )
    x = unit_variance_start(noise, sigmas[0])
    with bench.unet_at_work():
        walk = denoise(find_sampler(_SAMPLER), denoiser, x, sigmas, _no_noise, SamplerOptions(), Control())
        for step in walk:
            x = step.x
            yield None
    with bench.vae_at_work(Extras(), "decode"):
        latents = x / math.sqrt(1 + sigmas[-1] ** 2)
        return decode(checkpoint.vae, latents, checkpoint.scaling_factor, tile=bench.vae_tile)


def noise_levels(alphas_cumprod: Tensor, steps: int) -> tuple[Sequence[float], Sequence[float]]:
    """The timesteps that DDIM visits in `steps` steps, falling, and the sigma of each, and the one it ends at.

    As diffusers' DDIMScheduler has them with "leading" spacing and an offset of 1, which the published model was made
    for: the walk ends at the first timestep's level, not without noise.
    """
    stride = len(alphas_cumprod) // steps
    timesteps = [float(index * stride + 1) for index in reversed(range(steps))]
    table = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    places = [*(min(int(each), len(table) - 1) for each in timesteps), 0]
    return timesteps, [float(table[place]) for place in places]


def _no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise RuntimeError(f"DDIM draws nothing between {sigma} and {sigma_next}")


class _Told:
    """`unet`, told at each call how much noise lies on the small picture, in steps of the schedule."""

    def __init__(self, unet: Any, noise_level: int) -> None:
        self._unet = unet
        self._noise_level = noise_level
        self.parameters = unet.parameters

    @property
    def mid_block(self) -> nn.Module:
        """The network's own."""
        return self._unet.mid_block

    def __call__(
        self, sample: Tensor, timestep: Tensor, states: Tensor, *, return_dict: bool, **conditions: Any
    ) -> tuple[Tensor]:
        """As the network's, (N, 7, h, w) → (N, 4, h, w) in a tuple."""
        level = torch.full((len(sample),), self._noise_level, dtype=torch.long, device=sample.device)
        return self._unet(sample, timestep, states, return_dict=return_dict, class_labels=level, **conditions)
