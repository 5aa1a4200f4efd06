"""One checkpoint taking over from another on the way: a `Denoiser` made of two."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from webui.engine.denoiser import Denoiser


def evaluations_before(switch_at: float, evaluations: int) -> int:
    """How many of a walk's `evaluations` of the network the first checkpoint makes.

    A1111's rule: evaluation i (from 0) is the refiner's as soon as its share ``i / evaluations`` exceeds `switch_at`.
    """
    return min(int(switch_at * evaluations) + 1, evaluations)


class RefinedDenoiser:
    """`base` for the first `before` evaluations, then for good the one that `take_over` gives; for one walk.

    `take_over` is told how many evaluations were made, and only called when its turn comes: it may load a checkpoint.
    """

    def __init__(self, base: Denoiser, take_over: Callable[[int], Denoiser], *, before: int) -> None:
        self._current = base
        self._take_over = take_over
        self._before = before
        self._evaluation = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """See `Denoiser`."""
        return self._next()(x, sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        return self._next().both(x, sigma)

    def _next(self) -> Denoiser:
        if self._evaluation == self._before:
            self._current = self._take_over(self._evaluation)
        self._evaluation += 1
        return self._current
