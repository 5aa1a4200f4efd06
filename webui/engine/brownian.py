"""Noise from a Brownian path, for samplers of the stochastic equation: torchsde's tree, one for each picture.

The path of a picture is settled by its seed alone: noise for a stretch of noise levels is the same whatever was asked
before, in whatever batch. Must not be used by two threads at once (see `_drawing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from webui.engine.noise import brought

# A seed → standard normal noise of one picture's shape, always the same for that seed.
Draw = Callable[[int], Tensor]

# torchsde rounds levels to these, and warns where that puts the ends of a schedule outside the path.
DIGITS = 6


class BrownianNoise:
    """A `webui.engine.samplers.NoiseSource` whose noise for (sigma, sigma_next) is the path's mean over that stretch.

    `seeds` are the pictures'. `draw` gives noise of a picture's shape for any seed. The path goes from `sigma_min` to
    `sigma_max`, the least and greatest level above 0 of the whole schedule, for torchsde halves that stretch again and
    again: another range is another path.
    """

    def __init__(
        self, seeds: Sequence[int], draw: Draw, *, sigma_min: float, sigma_max: float, device: torch.device
    ) -> None:
        # Here, for it brings scipy, and most samplers do without.
        from torchsde import BrownianTree

        self._draw = draw
        self._device = device
        self._least, self._greatest = round(sigma_min, DIGITS), round(sigma_max, DIGITS)
        with _drawing(draw):
            nowhere = torch.zeros_like(draw(0))
            self._trees = [BrownianTree(self._least, nowhere, self._greatest, entropy=seed) for seed in seeds]

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal noise (N, *shape) on the device for the stretch between two different levels."""
        low, high = sorted((sigma, sigma_next))
        low, high = max(low, self._least), min(high, self._greatest)
        with _drawing(self._draw):
            rows = [cast("Tensor", tree(low, high)) for tree in self._trees]
        # From high to low the path's change has the other sign, as in k-diffusion.
        sign = 1 if sigma < sigma_next else -1
        return brought(torch.stack(rows), self._device) * (sign / math.sqrt(high - low))


@contextmanager
def _drawing(draw: Draw) -> Iterator[None]:
    """Inside the block torchsde takes its normal numbers from `draw` and not from torch's own generator.

    It has no argument for that, and the numbers must be able to come from any card's generator (see `noise`). The
    function is torchsde's, so this holds for the whole process; the engine runs one request at a time.
    """
    from torchsde._brownian import brownian_interval

    original = brownian_interval._randn

    def seeded(_size: Any, _dtype: Any, _device: Any, seed: Any) -> Tensor:
        return draw(int(seed))

    brownian_interval._randn = seeded
    try:
        yield
    finally:
        brownian_interval._randn = original
