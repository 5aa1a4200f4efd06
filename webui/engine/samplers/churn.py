"""Churn: a little fresh noise before a step, which the step then takes away again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.samplers.contract import NoiseSource


def churned(x: Tensor, sigma: float, steps: int, noise: NoiseSource, options: SamplerOptions) -> tuple[Tensor, float]:
    """`x` raised to a higher noise level, and that level.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 2, lines 4 to 6: ``sigma_hat = sigma (1 + gamma)`` with
    ``gamma = min(s_churn / steps, sqrt(2) - 1)`` for levels from `s_tmin` to `s_tmax` (0 = no limit). With churn on,
    noise is drawn for every level, as k-diffusion does, so that the limits do not shift later noise.
    """
    if options.s_churn == 0:
        return x, sigma
    fresh = noise(sigma, sigma)
    if not options.s_tmin <= sigma <= (options.s_tmax or math.inf):
        return x, sigma
    gamma = min(options.s_churn / steps, math.sqrt(2) - 1)
    raised = sigma * (1 + gamma)
    return torch.add(x, fresh, alpha=options.s_noise * math.sqrt(raised**2 - sigma**2)), raised
