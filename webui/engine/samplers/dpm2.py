"""DPM2 and DPM2 a: a look from half-way down, then the whole step along what was seen there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.churn import churned
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.samplers.euler_ancestral import ancestral_step


def _midpoint_step(denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    """(x at `sigma_next`, the estimate seen at `sigma`): DPM-Solver-2 with r1 = 1/2; to 0, Euler's step."""
    denoised = denoiser(x, sigma)
    if sigma_next == 0:
        return denoised, denoised
    middle = math.sqrt(sigma * sigma_next)
    halfway = torch.lerp(denoised, x, middle / sigma)
    slope = (halfway - denoiser(halfway, middle)) / middle
    return torch.add(x, slope, alpha=sigma_next - sigma), denoised


def dpm2(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, algorithm 1 in noise space) with the churn of Karras et al. 2022.

    k-diffusion's ``sample_dpm_2``: the middle is the geometric mean of the levels. Error of order 2 from two calls.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, raised = churned(x, sigma, len(sigmas) - 1, noise, options)
        x, denoised = _midpoint_step(denoiser, x, raised, sigma_next)
        yield SamplerStep(index, sigma, x, denoised)


def dpm2_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """The same step to below the next level, then fresh noise up to it (k-diffusion's ``sample_dpm_2_ancestral``)."""
    eta = 1.0 if options.eta is None else options.eta
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_step(sigma, sigma_next, eta)
        x, denoised = _midpoint_step(denoiser, x, sigma, down)
        if up > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=up * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
