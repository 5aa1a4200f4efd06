"""DPM++ 2M SDE, DPM++ 2M SDE Heun and DPM++ 3M SDE: the stochastic equation with one network call a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep

# (estimates, newest first; their steps in log sigma, this step's first; h (1 + eta)) → what higher orders add to x.
_Correction = Callable[[list[Tensor], list[float], float], Tensor | None]


def dpmpp_2m_sde(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), equation 18, midpoint form (k-diffusion's default)."""
    return _multistep_sde(denoiser, x, sigmas, noise, options, _midpoint)


def dpmpp_2m_sde_heun(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """SDE-DPM-Solver++(2M) with the second-order term integrated exactly (k-diffusion's ``solver_type="heun"``)."""
    return _multistep_sde(denoiser, x, sigmas, noise, options, _second_order)


def dpmpp_3m_sde(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver++(3M) for the SDE: the extension of the same equation to three estimates (k-diffusion).

    The second difference has half the weight that order 3 asks for, there as in diffusers; so the order is 2.
    """
    return _multistep_sde(denoiser, x, sigmas, noise, options, _third_order)


def _multistep_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    options: SamplerOptions,
    correction: _Correction,
) -> Iterator[SamplerStep]:
    """With ``h`` the step in ``-log sigma``: ``x' = (s'/s) e^(-eta h) x - expm1(-h (1 + eta)) D + correction + noise``.

    The noise has deviation ``s' sqrt(-expm1(-2 eta h))``; `eta` is 1 by default. The last step, to 0, is the estimate.
    """
    eta = 1.0 if options.eta is None else options.eta
    estimates: list[Tensor] = []
    lengths: list[float] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            h_eta = h * (1 + eta)
            estimates, lengths = [denoised, *estimates[:2]], [h, *lengths[:2]]
            x = torch.lerp(denoised, x, math.exp(-h_eta))
            added = correction(estimates, lengths, h_eta)
            if added is not None:
                x = x + added
            if eta > 0:
                deviation = sigma_next * math.sqrt(-math.expm1(-2 * eta * h))
                x = torch.add(x, noise(sigma, sigma_next), alpha=deviation * options.s_noise)
        yield SamplerStep(index, sigma, x, denoised)


def _phi_2(h: float) -> float:
    """``expm1(-h) / h + 1``: the weight of the estimate's slope over a step of `h`."""
    return math.expm1(-h) / h + 1


def _midpoint(estimates: list[Tensor], lengths: list[float], h: float) -> Tensor | None:
    if len(estimates) < 2:
        return None
    return (estimates[0] - estimates[1]) * (-0.5 * math.expm1(-h) * lengths[0] / lengths[1])


def _second_order(estimates: list[Tensor], lengths: list[float], h: float) -> Tensor | None:
    if len(estimates) < 2:
        return None
    return (estimates[0] - estimates[1]) * (_phi_2(h) * lengths[0] / lengths[1])


def _third_order(estimates: list[Tensor], lengths: list[float], h: float) -> Tensor | None:
    if len(estimates) < 3:
        return _second_order(estimates, lengths, h)
    newer, older = lengths[1] / lengths[0], lengths[2] / lengths[0]
    slope_newer = (estimates[0] - estimates[1]) / newer
    slope_older = (estimates[1] - estimates[2]) / older
    bend = (slope_newer - slope_older) / (newer + older)
    slope = torch.add(slope_newer, bend, alpha=newer)
    return torch.add(slope * _phi_2(h), bend, alpha=0.5 - _phi_2(h) / h)
