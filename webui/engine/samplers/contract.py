"""What a sampler is: a generator over a denoiser, noisy latents, falling noise levels and noise, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser

# (sigma, sigma_next) → standard normal noise of the latents' shape for that stretch of noise levels. Streams give new
# noise at each call whatever the levels; a Brownian path gives the same noise for the same stretch.
NoiseSource = Callable[[float, float], Tensor]


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """One step is done: it began at noise level `sigma` (index from 0), saw `denoised` there, and arrived at `x`.

    Both are (N, channels, h, w) and never changed afterwards, so they may be kept and looked at from other threads.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


# (denoiser, x at sigmas[0], sigmas falling to 0, noise, options) → a step for each pair of neighbouring sigmas. The two
# samplers that choose their own levels, DPM fast and DPM adaptive, say how many of the given ones they are past.
SamplerFunction = Callable[[Denoiser, Tensor, Sequence[float], NoiseSource, SamplerOptions], Iterator[SamplerStep]]
