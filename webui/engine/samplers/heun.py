"""Heun: Euler's step, and a second look from where it arrived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.churn import churned
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def heun_step(denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    """(x at `sigma_next`, the estimate seen at `sigma`): the mean of the slopes at both ends; to 0, Euler's alone."""
    denoised = denoiser(x, sigma)
    ahead = torch.lerp(denoised, x, sigma_next / sigma)
    if sigma_next == 0:
        return ahead, denoised
    slope = (x - denoised) / sigma
    slope_ahead = (ahead - denoiser(ahead, sigma_next)) / sigma_next
    return torch.add(x, slope + slope_ahead, alpha=(sigma_next - sigma) / 2), denoised


def heun(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Karras et al. 2022 (arXiv 2206.00364), algorithm 2. Error of order 2 from two network calls a step."""
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, raised = churned(x, sigma, len(sigmas) - 1, noise, options)
        x, denoised = heun_step(denoiser, x, raised, sigma_next)
        yield SamplerStep(index, sigma, x, denoised)
