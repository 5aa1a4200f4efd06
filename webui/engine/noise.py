"""Random numbers, one stream a picture, so that a picture is the same alone or in a batch.

Drawn on the CPU whatever the device, as A1111's "RNG: CPU" does: the same seed gives the same noise everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def picture_seeds(seed: int, batch: int, batch_size: int) -> list[int]:
    """The seeds of the pictures of batch `batch` (from 0): picture i of a job has ``seed + i``."""
    return [seed + batch * batch_size + index for index in range(batch_size)]


class Noise:
    """Standard normal noise in the latents' shape; the first call is the starting noise, later ones a sampler's.

    `shape` is one picture's (channels, h, w). Each picture draws from a generator of its own.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def __call__(self) -> Tensor:
        """The next (N, channels, h, w) float32 on the device."""
        rows = [torch.randn(self._shape, generator=generator) for generator in self._generators]
        stack = torch.stack(rows)
        if self._device.type == "cuda":
            # Pinned, so that the copy runs beside the host instead of stopping it.
            return stack.pin_memory().to(self._device, non_blocking=True)
        return stack.to(self._device)
