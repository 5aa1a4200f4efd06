"""DPM++ SDE: the stochastic equation in two half looks a step, along one Brownian path."""

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


def dpmpp_sde(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver++ for the diffusion SDE, single step, r = 1/2 (k-diffusion's ``sample_dpmpp_sde``).

    The solver of Lu et al. 2022 (arXiv 2211.01095), algorithm 1, its steps ancestral. The look at the middle and the
    whole step use noise of overlapping stretches of the path, so `noise` should be Brownian. The last step, to 0, is
    the estimate.
    """
    eta = 1.0 if options.eta is None else options.eta
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * sigma_next)
            halfway = _stochastic_step(x, denoised, sigma, middle, eta, noise, options.s_noise)
            target = denoiser(halfway, middle)
            x = _stochastic_step(x, target, sigma, sigma_next, eta, noise, options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)


def _stochastic_step(
    x: Tensor, target: Tensor, sigma: float, sigma_next: float, eta: float, noise: NoiseSource, s_noise: float
) -> Tensor:
    """`x` blended towards `target` past `sigma_next`, and the path's noise up to it."""
    down, up = ancestral_step(sigma, sigma_next, eta)
    x = torch.lerp(target, x, down / sigma)
    return torch.add(x, noise(sigma, sigma_next), alpha=up * s_noise) if up > 0 else x
