"""Euler a: Euler down past the next noise level, then fresh noise up to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma to step down to, deviation of the noise to add), so that the variances sum to ``sigma_next²``.

    For eta 1 this is the posterior of DDPM (Ho et al. 2020, arXiv 2006.11239, equation 7) in sigma's terms:
    ``up² = sigma'² (sigma² - sigma'²) / sigma²``.
    """
    if eta == 0:
        return sigma_next, 0.0
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def euler_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Ancestral sampling with Euler steps (k-diffusion's ``sample_euler_ancestral``); never converges by design.

    `eta` (1 by default) is the share of fresh noise. The last step, to sigma 0, adds nothing and draws no noise.
    """
    eta = 1.0 if options.eta is None else options.eta
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = torch.lerp(denoised, x, down / sigma)
        if up > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=up * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
