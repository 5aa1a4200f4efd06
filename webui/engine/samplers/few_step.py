"""LCM and TCD: samplers of distilled models, which say a good picture from any noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.schedules import stable_diffusion_table


def lcm(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Latent consistency sampling: Luo et al. 2023 (arXiv 2310.04378), algorithm 3: the estimate under fresh noise.

    Their boundary coefficients c_skip and c_out are 0 and 1 to within 1e-5 at every level they were distilled for, and
    are left out.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        x = denoised
        if sigma_next > 0:
            x = torch.add(denoised, noise(sigma, sigma_next), alpha=sigma_next * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)


def tcd(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Trajectory consistency sampling: Zheng et al. 2024 (arXiv 2402.19159), algorithm 4, "strategic stochastic".

    Steps down without noise to the timestep ``(1 - gamma) t'``, then up to t' with noise; `eta` is their gamma, 0.3 by
    default. Timesteps are those of Stable Diffusion's training, which every TCD model was distilled on.
    """
    gamma = 0.3 if options.eta is None else options.eta
    table = stable_diffusion_table()
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            # A timestep that is whole up to rounding must not fall to the one below it.
            timestep = math.floor((1 - gamma) * table.timestep(sigma_next) + 1e-6)
            down = min(table.sigma(timestep), sigma_next)
            x = torch.lerp(denoised, x, down / sigma)
            if down < sigma_next:
                deviation = math.sqrt(sigma_next**2 - down**2)
                x = torch.add(x, noise(sigma, sigma_next), alpha=deviation * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
