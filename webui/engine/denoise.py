"""The denoising loop, as a generator: previews, progress, skipping and stopping are only its consumers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from webui.core.errors import Overflow
from webui.core.ports import Control
from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers import NoiseSource, Sampler, SamplerStep


def denoise(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    options: SamplerOptions,
    control: Control,
) -> Generator[SamplerStep, None, Tensor | None]:
    """Walks `x` (N, channels, h, w), noisy by ``sigmas[0]``, down to the last sigma; returns it, or None if skipped.

    Raises `Overflow` if the result is not finite. Whether it is, is asked once at the end: asking at every step
    would make the host wait for the device.
    """
    if control.take_skip():
        return None
    for step in sampler.run(denoiser, x, sigmas, noise, options):
        x = step.x
        yield step
        if control.take_skip():
            return None
    if not bool(torch.isfinite(x).all()):
        raise Overflow(
            "The picture turned into numbers that are not finite (NaN) while denoising: the model overflowed."
            " Lower the CFG scale or the prompt's weights, try another sampler, or another checkpoint."
        )
    return x
