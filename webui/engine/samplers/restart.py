"""Restart: down by Heun, up again by fresh noise, and down once more over the stretch where errors gather."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.samplers.heun import heun_step
from webui.engine.schedules import karras_between


@dataclass(frozen=True, slots=True)
class Segment:
    """Climb `times` from the level it belongs to back to `top`, each time coming down in `steps` steps."""

    steps: int
    times: int
    top: float


def restart(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    options: SamplerOptions,
    *,
    segments: Mapping[float, Segment] | None = None,
) -> Iterator[SamplerStep]:
    """Xu et al. 2023 (arXiv 2306.14878), algorithm 1, with Heun's steps.

    `segments` maps the level from which to climb to how; levels are taken to the nearest of `sigmas`. Left out, it is
    A1111's rule: from 20 steps on, a part of them (9, or half from 36 steps on, in two climbs) goes over 0.1 to 2
    again, and the rest is spaced by Karras between the ends of `sigmas`, so that the number of steps stays.
    """
    if segments is None:
        sigmas, segments = _default_segments(sigmas)
    reached: float | None = None
    for index, (sigma, sigma_next) in enumerate(_stretches(sigmas, segments)):
        if reached is not None and reached < sigma:
            deviation = math.sqrt(sigma**2 - reached**2)
            x = torch.add(x, noise(reached, sigma), alpha=deviation * options.s_noise)
        x, denoised = heun_step(denoiser, x, sigma, sigma_next)
        reached = sigma_next
        yield SamplerStep(index, sigma, x, denoised)


def _default_segments(sigmas: Sequence[float]) -> tuple[Sequence[float], Mapping[float, Segment]]:
    steps = len(sigmas) - 1
    if steps < 20:
        return sigmas, {}
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    return karras_between(sigmas[-2], sigmas[0], steps - again * times), {0.1: Segment(again, times, 2.0)}


def _stretches(sigmas: Sequence[float], segments: Mapping[float, Segment]) -> Iterator[tuple[float, float]]:
    """The (from, to) pairs to walk, those of the climbs among them."""

    def nearest(level: float) -> int:
        return min(range(len(sigmas)), key=lambda index: abs(sigmas[index] - level))

    by_index = {nearest(level): segment for level, segment in segments.items()}
    for index, pair in enumerate(pairwise(sigmas), start=1):
        yield pair
        segment = by_index.get(index)
        if segment is None or (top := nearest(segment.top)) >= index:
            continue
        again = karras_between(sigmas[index], sigmas[top], segment.steps + 1)[:-1]
        for _ in range(segment.times):
            yield from pairwise(again)
