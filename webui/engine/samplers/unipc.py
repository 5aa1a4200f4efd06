"""UniPC: a multistep predictor, corrected by the network call that the next step makes anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def unipc(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """UniPC-p with B(h) = h ("bh1"), predicting the picture: Zhao et al. 2023 (arXiv 2302.04867), algorithms 1 and 2.

    `options.order` is p; the first and last steps have as much of it as there are steps before and after them, and the
    last of all, to 0, is the estimate. One network call a step; with the corrector the error is of order p + 1.
    """
    steps = len(sigmas) - 1
    estimates: list[Tensor] = []
    base, order_before = x, 0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        estimates = [denoised, *estimates[: options.order]]
        levels = sigmas[max(index - options.order, 0) : index + 1][::-1]
        if index > 0:
            x = _update(base, estimates[1:], levels[1:], sigma, order_before, ahead=denoised)
        base, order_before = x, min(options.order, index + 1, steps - index)
        x = denoised if sigma_next == 0 else _update(x, estimates, levels, sigma_next, order_before)
        yield SamplerStep(index, sigma, x, denoised)


def _update(
    x: Tensor,
    estimates: list[Tensor],
    levels: Sequence[float],
    sigma: float,
    order: int,
    *,
    ahead: Tensor | None = None,
) -> Tensor:
    """`x` at ``levels[0]`` taken to `sigma` by `estimates` at `levels` (newest first); with `ahead`, corrected.

    `ahead` is the estimate at `sigma` itself, which makes the order one higher (their UniC).
    """
    h = math.log(levels[0] / sigma)
    ratios = [math.log(levels[0] / level) / h for level in levels[1:order]]
    changes = [(estimate - estimates[0]) / ratio for estimate, ratio in zip(estimates[1:order], ratios, strict=True)]
    if ahead is not None:
        ratios, changes = [*ratios, 1.0], [*changes, ahead - estimates[0]]
    moved = torch.lerp(estimates[0], x, sigma / levels[0])
    for weight, change in zip(_weights(ratios, h), changes, strict=True):
        moved = torch.add(moved, change, alpha=h * weight)
    return moved


def _weights(ratios: Sequence[float], h: float) -> Sequence[float]:
    """The solution a of ``sum_k a_k r_k^(n-1) = h^n n! phi_(n+1) / B(h)``, n = 1…: their equation 5 for B(h) = h.

    For a single estimate they set 1/2, whatever h, which keeps the order.
    """
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    phi, factorial = math.expm1(-h) / -h - 1, 1
    right: list[float] = []
    for number in range(1, len(ratios) + 1):
        right.append(phi * factorial / -h)
        factorial *= number + 1
        phi = phi / -h - 1 / factorial
    powers = np.vander(np.asarray(ratios), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.asarray(right))]
