"""Euler a: Euler down past the next noise level, then fresh noise up to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma to step down to, deviation of the noise to add), so that the variances sum to ``sigma_next²``.

    For eta 1 this is the posterior of DDPM (Ho et al. 2020, arXiv 2006.11239, equation 7) in sigma's terms:
    ``up² = sigma'² (sigma² - sigma'²) / sigma²``.
    """
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def euler_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource
) -> Iterator[SamplerStep]:
    """Ancestral sampling with Euler steps (k-diffusion's ``sample_euler_ancestral``, eta 1); never converges by design.

    The last step, to sigma 0, adds nothing and draws no noise.
    """
    for index, sigma in enumerate(sigmas[:-1]):
        denoised = denoiser(x, sigma)
        down, up = ancestral_step(sigma, sigmas[index + 1])
        x = torch.lerp(denoised, x, down / sigma)
        if up > 0:
            x = torch.add(x, noise(), alpha=up)
        yield SamplerStep(index, sigma, x, denoised)
