"""DPM++ 2S a: a look from half-way, a step from where it began, fresh noise."""

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


def dpmpp_2s_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv 2211.01095), algorithm 1 with r = 1/2, made ancestral.

    k-diffusion's ``sample_dpmpp_2s_ancestral``. Both updates are blends of the latents and an estimate. With `eta` 0
    the error is of order 2.
    """
    eta = 1.0 if options.eta is None else options.eta
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            halfway = torch.lerp(denoised, x, middle / sigma)
            x = torch.lerp(denoiser(halfway, middle), x, down / sigma)
        if up > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=up * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
