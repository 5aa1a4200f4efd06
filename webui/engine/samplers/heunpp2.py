"""HeunPP2: Heun's rule with a third look one level further on, weighed by how noisy each look was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.churn import churned
from webui.engine.samplers.contract import NoiseSource, SamplerStep


def heunpp2(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """Heun++ as the field's other programs have it, an extension of Karras et al. 2022, algorithm 2.

    With slopes ``d1, d2, d3`` at the levels ``s, s', s''``, each reached by Euler from the one before, a step goes
    along ``(1 - w2 - w3) d1 + w2 d2 + w3 d3`` where ``w2 = s' / 3 S``, ``w3 = s'' / 3 S`` and ``S`` is the first level
    of all. Before the last step but one there are two slopes and ``w2 = s' / 2 S``; the last is Euler's. Weights that
    depend on S keep it at order 1 formally; it has no paper of its own.
    """
    steps = len(sigmas) - 1
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, raised = churned(x, sigma, steps, noise, options)
        denoised = denoiser(x, raised)
        if index == steps - 1:
            x = torch.lerp(denoised, x, sigma_next / raised)
        else:
            levels = [raised, *sigmas[index + 1 : min(index + 3, steps)]]
            slopes = _slopes(denoiser, x, denoised, levels)
            weights = [level / (len(levels) * sigmas[0]) for level in levels[1:]]
            slope = slopes[0] * (1 - sum(weights))
            for weight, further in zip(weights, slopes[1:], strict=True):
                slope = torch.add(slope, further, alpha=weight)
            x = torch.add(x, slope, alpha=sigma_next - raised)
        yield SamplerStep(index, sigma, x, denoised)


def _slopes(denoiser: Denoiser, x: Tensor, denoised: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """The slopes at `levels`, the first from `denoised`, each other seen after an Euler step from the one before."""
    slopes = [(x - denoised) / levels[0]]
    for before, level in pairwise(levels):
        x = torch.add(x, slopes[-1], alpha=level - before)
        slopes.append((x - denoiser(x, level)) / level)
    return slopes
