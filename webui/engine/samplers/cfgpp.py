"""CFG++: guidance for the picture, the negative prompt's own prediction for the noise that leads to the next level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.samplers.euler_ancestral import ancestral_step

# A1111 divides the CFG scale by this for CFG++, whose own scale goes from 0 to 1.
SCALE_DIVISOR = 12.5


def cfgpp(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DDIM CFG++ and Euler CFG++: Chung et al. 2024 (arXiv 2406.08070), algorithm 2.

    ``x' = D + sigma' (x - U) / sigma`` with the guided estimate D and the negative prompt's estimate U. In sigma's
    convention DDIM and Euler are the same rule; they differ in levels and start. `eta` (0 by default) adds noise as
    in DDIM.
    """
    return _cfgpp(denoiser, x, sigmas, noise, options, options.eta or 0.0)


def cfgpp_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Euler a CFG++: the same rule to below the next level, then fresh noise up to it; `eta` is 1 by default."""
    return _cfgpp(denoiser, x, sigmas, noise, options, 1.0 if options.eta is None else options.eta)


def _cfgpp(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions, eta: float
) -> Iterator[SamplerStep]:
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised, unguided = denoiser.both(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = torch.add(denoised, x - unguided, alpha=down / sigma)
        if up > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=up * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
