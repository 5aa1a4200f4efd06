"""DDIM: from no fresh noise at all to DDPM's, by one number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.samplers.euler_ancestral import ancestral_step


def ddim(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Song et al. 2020 (arXiv 2010.02502), equation 12, on variance-preserving latents.

    ``z = sqrt(a) x0 + sqrt(1 - a) e`` moves to ``sqrt(a') x0 + sqrt(1 - a' - s²) e + s · noise``, where
    ``a = 1 / (1 + sigma²)``; in sigma's convention ``x = z / sqrt(a)`` and the deviation s is `eta` (0 by default)
    times DDPM's, as in `ancestral_step`. With eta 0 it differs from Euler in the noise levels it is run on and in how
    it starts (see `unit_variance_start`).
    """
    eta = options.eta or 0.0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        predicted_noise = (x - denoised) / sigma
        x = torch.add(denoised, predicted_noise, alpha=down)
        if up > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=up)
        yield SamplerStep(index, sigma, x, denoised)


def unit_variance_start(noise: Tensor, sigma: float) -> Tensor:
    """Latents to start from: DDIM takes the noise itself for z, which is ``noise · sqrt(1 + sigma²)`` as x."""
    return noise * math.sqrt(1 + sigma * sigma)
