"""Euler: the plainest rule for the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.churn import churned
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def euler(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """First-order integration of ``dx/dsigma = (x - denoised) / sigma``.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without the second-order correction. Written as a blend:
    ``x + (sigma' - sigma)(x - D) / sigma = D + (x - D) sigma' / sigma``. Error of order 1; draws noise only to churn.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, raised = churned(x, sigma, len(sigmas) - 1, noise, options)
        denoised = denoiser(x, raised)
        x = torch.lerp(denoised, x, sigma_next / raised)
        yield SamplerStep(index, sigma, x, denoised)
