"""Euler: the plainest rule for the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def euler(denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Iterator[SamplerStep]:  # noqa: ARG001  # every sampler has one signature
    """First-order integration of ``dx/dsigma = (x - denoised) / sigma``.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without churn and without the second-order correction. Written
    as a blend: ``x + (sigma' - sigma)(x - D) / sigma = D + (x - D) sigma' / sigma``. Error of order 1; draws no noise.
    """
    for index, sigma in enumerate(sigmas[:-1]):
        denoised = denoiser(x, sigma)
        x = torch.lerp(denoised, x, sigmas[index + 1] / sigma)
        yield SamplerStep(index, sigma, x, denoised)
