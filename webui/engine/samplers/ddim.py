"""DDIM: the deterministic member of the DDPM family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def ddim(denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Iterator[SamplerStep]:  # noqa: ARG001  # every sampler has one signature
    """Song et al. 2020 (arXiv 2010.02502), equation 12 with eta 0, on variance-preserving latents.

    ``z = sqrt(a) x0 + sqrt(1 - a) e`` moves to ``sqrt(a') x0 + sqrt(1 - a') e`` with the same ``e``, where
    ``a = 1 / (1 + sigma²)``; in sigma's convention ``x = z / sqrt(a)``. It differs from Euler in the noise levels it
    is run on and in how it starts (see `unit_variance_start`). Draws no noise.
    """
    for index, sigma in enumerate(sigmas[:-1]):
        sigma_next = sigmas[index + 1]
        denoised = denoiser(x, sigma)
        predicted_noise = (x - denoised) / sigma
        x = torch.add(denoised, predicted_noise, alpha=sigma_next)
        yield SamplerStep(index, sigma, x, denoised)


def unit_variance_start(noise: Tensor, sigma: float) -> Tensor:
    """Latents to start from: DDIM takes the noise itself for z, which is ``noise · sqrt(1 + sigma²)`` as x."""
    return noise * math.sqrt(1 + sigma * sigma)
