"""DPM++ 2M: second order from one network call a step, by remembering the last one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver++(2M): Lu et al. 2022 (arXiv 2211.01095), algorithm 2, in sigma's convention.

    With ``lambda = -log sigma`` and ``h`` its step, ``x' = (sigma'/sigma) x - expm1(-h) D``, where D extrapolates the
    last two estimates: ``D = (1 + 1/2r) D_i - (1/2r) D_{i-1}``, ``r = h_last / h``. The first step and the last, to
    sigma 0, are of first order. Error of order 2; draws no noise.
    """
    previous: Tensor | None = None
    h_last = 0.0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            target = denoised
            if previous is not None:
                target = torch.lerp(previous, denoised, 1 + h / (2 * h_last))
            # -expm1(-h) is 1 - sigma'/sigma, so the update is a blend of x and the target.
            x = torch.lerp(target, x, sigma_next / sigma)
            previous, h_last = denoised, h
        yield SamplerStep(index, sigma, x, denoised)
