"""DDPM: the chain that diffusion models were defined by, on any subset of its levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def ddpm(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Ho et al. 2020 (arXiv 2006.11239), algorithm 2, with the posterior's own variance (equation 7).

    In sigma's convention the posterior of ``x'`` given ``x`` and ``x0`` has the mean ``x0 + (x - x0) sigma'²/sigma²``
    and the variance ``sigma'² (1 - sigma'²/sigma²)``.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        kept = (sigma_next / sigma) ** 2
        x = torch.lerp(denoised, x, kept)
        if sigma_next > 0:
            x = torch.add(x, noise(sigma, sigma_next), alpha=sigma_next * math.sqrt(1 - kept) * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)
