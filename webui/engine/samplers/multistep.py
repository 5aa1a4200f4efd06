"""Adams-Bashforth rules: the slope extrapolated from several past steps, for LMS, PLMS, IPNDM, IPNDM_V and DEIS."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep

# Weights of equal steps, newest slope first (Liu et al. 2022, arXiv 2202.09778, equations 9 and 12).
EQUAL_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
LMS_ORDER = 4
DEIS_ORDER = 3


def lms(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Linear multistep of order 4: Adams-Bashforth for unequal steps in sigma (k-diffusion's ``sample_lms``).

    The slopes of up to four steps are interpolated by a polynomial in sigma, which is integrated exactly.
    """

    def weights(visited: Sequence[float], sigma_next: float) -> Sequence[float]:
        levels = visited[-LMS_ORDER:][::-1]
        return integrals(levels, levels[0], sigma_next)

    return _multistep(denoiser, x, sigmas, weights)


def deis(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DEIS of order 3: Zhang & Chen 2022 (arXiv 2204.13902), algorithm 1, interpolating in log rho.

    Their rho is our sigma. The predicted noise is interpolated by a polynomial in log sigma, and integrated over
    sigma: diffusers' ``DEISMultistepScheduler``. The last step, to 0, is of first order, for log 0 is infinite.
    """

    def weights(visited: Sequence[float], sigma_next: float) -> Sequence[float]:
        if sigma_next == 0:
            return (-visited[-1],)
        logs = [math.log(level) for level in visited[-DEIS_ORDER:][::-1]]
        return integrals(logs, logs[0], math.log(sigma_next), density=np.exp)

    return _multistep(denoiser, x, sigmas, weights)


def ipndm(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """IPNDM of order 4: Zhang & Chen 2022 (arXiv 2204.13902), appendix H.2.

    The weights of equal steps, at whatever levels they are taken, with lower orders to start; the last step, to 0, is
    of first order.
    """

    def weights(visited: Sequence[float], sigma_next: float) -> Sequence[float]:
        order = 1 if sigma_next == 0 else min(len(visited), len(EQUAL_STEPS))
        return [(sigma_next - visited[-1]) * weight for weight in EQUAL_STEPS[order - 1]]

    return _multistep(denoiser, x, sigmas, weights)


def ipndm_v(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """IPNDM_V of order 4: IPNDM with weights for unequal steps, as its authors' diff-sampler code has them.

    From the third step on those weights differ a little from Adams-Bashforth's exact ones, which LMS has, and where
    lengths do not change evenly they do not quite add up to 1. They are kept, for pictures made elsewhere were made
    with them. The last step, to 0, is of first order.
    """

    def weights(visited: Sequence[float], sigma_next: float) -> Sequence[float]:
        step = sigma_next - visited[-1]
        if sigma_next == 0:
            return (step,)
        lengths = [after - before for before, after in pairwise(visited[-4:])][::-1]
        return [step * weight for weight in _unequal_steps(step, lengths)]

    return _multistep(denoiser, x, sigmas, weights)


def plms(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """PLMS: pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778, algorithm 2 without the Runge-Kutta start).

    The weights of equal steps on the predicted noise, carried over by DDIM's rule, which in sigma's convention is a
    straight step. The first step is improved Euler with a second network call, as in CompVis' PLMS.
    """
    slopes: deque[Tensor] = deque(maxlen=len(EQUAL_STEPS))
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        slopes.appendleft((x - denoised) / sigma)
        if index == 0 and sigma_next > 0:
            ahead = torch.lerp(denoised, x, sigma_next / sigma)
            slope = (slopes[0] + (ahead - denoiser(ahead, sigma_next)) / sigma_next) / 2
        else:
            slope = _combined(slopes, EQUAL_STEPS[len(slopes) - 1])
        x = torch.add(x, slope, alpha=sigma_next - sigma)
        yield SamplerStep(index, sigma, x, denoised)


def _multistep(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    weights: Callable[[Sequence[float], float], Sequence[float]],
) -> Iterator[SamplerStep]:
    """Moves x by the weighted sum of its past slopes; `weights` of (levels visited, next level), newest first."""
    slopes: deque[Tensor] = deque(maxlen=LMS_ORDER)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        slopes.appendleft((x - denoised) / sigma)
        x = x + _combined(slopes, weights(sigmas[: index + 1], sigma_next))
        yield SamplerStep(index, sigma, x, denoised)


def _combined(slopes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of the newest slopes times their weights; there may be more slopes than weights."""
    pairs = zip(weights, slopes, strict=False)
    weight, slope = next(pairs)
    total = slope * weight
    for weight, slope in pairs:
        total = torch.add(total, slope, alpha=weight)
    return total


def integrals(
    points: Sequence[float], start: float, end: float, density: Callable[[np.ndarray], np.ndarray] = np.ones_like
) -> list[float]:
    """The integral from `start` to `end` of each Lagrange polynomial on `points`, times `density`.

    Gauss-Legendre with 12 nodes: exact for polynomials up to degree 23, and to the last digits for exp.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(12)
    half = (end - start) / 2
    at = start + half * (nodes + 1)
    found = []
    for j, own in enumerate(points):
        others = [point for k, point in enumerate(points) if k != j]
        basis = np.prod([(at - other) / (own - other) for other in others], axis=0) if others else np.ones_like(at)
        found.append(float(half * np.sum(node_weights * basis * density(at))))
    return found


def _unequal_steps(step: float, lengths: Sequence[float]) -> list[float]:
    """IPNDM_V's weights, newest slope first, for a step of length `step` after steps of `lengths`, newest first."""
    if not lengths:
        return [1.0]
    h, h1 = step, lengths[0]
    weights = [1 + h / h1 / 2, -h / h1 / 2]
    if len(lengths) == 1:
        return weights
    h2 = lengths[1]
    second = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    weights = [weights[0] + second, weights[1] - (1 + h1 / h2) * second, second * h1 / h2]
    if len(lengths) == 2:
        return weights
    h3 = lengths[2]
    third = ((1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))) * (
        (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    )
    ratio = (h1 * (h1 + h2)) / (h2 * (h2 + h3))
    return [
        weights[0] + third,
        weights[1] - (1 + h1 / h2 + ratio) * third,
        weights[2] + (h1 / h2 + ratio * (1 + h2 / h3)) * third,
        -ratio * h1 / h2 * third,
    ]
