"""What a sampler is: a generator over a denoiser, noisy latents and falling noise levels, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from webui.engine.denoiser import Denoiser

# Gives standard normal noise of the latents' shape, new at each call.
NoiseSource = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """One step is done: it began at noise level `sigma` (index from 0), saw `denoised` there, and arrived at `x`.

    Both are (N, channels, h, w) and never changed afterwards, so they may be kept and looked at from other threads.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


# (denoiser, x at sigmas[0], sigmas falling to 0, noise) → a step for each pair of neighbouring sigmas.
SamplerFunction = Callable[[Denoiser, Tensor, Sequence[float], NoiseSource], Iterator[SamplerStep]]
