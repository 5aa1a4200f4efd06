"""DPM fast and DPM adaptive: single-step DPM-Solvers that choose their own noise levels between two ends.

Both walk from the first of the given levels to the last but one (their rules need log sigma, so 0 is out of reach),
and leave that little noise in the picture, as k-diffusion does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from webui.core.requests import SamplerOptions
from webui.engine.denoiser import Denoiser
from webui.engine.samplers.contract import NoiseSource, SamplerStep
from webui.engine.samplers.euler_ancestral import ancestral_step

# k-diffusion's tolerances and first step in log sigma; a step is taken if the controller would not shrink it further.
RELATIVE_TOLERANCE = 0.05
ABSOLUTE_TOLERANCE = 0.0078
FIRST_STEP = 0.05
LEAST_FACTOR = 0.81
# Where to stop, in log sigma.
END = 1e-5


class _Solver:
    """The rules of order 1, 2 and 3 from one point, sharing the network calls that they have in common.

    Lu et al. 2022 (arXiv 2206.00927), algorithm 2 with ``r1 = 1/3, r2 = 2/3`` and algorithm 1, for ``lambda =
    -log sigma`` and alpha 1. `slope` is the predicted noise, ``(x - denoised) / sigma``.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, log_sigma: float) -> None:
        self._denoiser = denoiser
        self._x = x
        self._sigma = math.exp(log_sigma)
        self._log_sigma = log_sigma
        self.denoised = denoiser(x, self._sigma)
        self._slope = (x - self.denoised) / self._sigma
        self._further: tuple[float, Tensor] | None = None

    def first(self, log_end: float) -> Tensor:
        return self._straight(math.exp(log_end))

    def second(self, log_end: float, r1: float = 1 / 2) -> Tensor:
        end = math.exp(log_end)
        change = self._slope_at(r1, log_end) - self._slope
        return torch.add(self._straight(end), change, alpha=(end - self._sigma) / (2 * r1))

    def third(self, log_end: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
        h = self._log_sigma - log_end
        end, later = math.exp(log_end), self._log_sigma - r2 * h
        bend = (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1)
        change = self._slope_at(r1, log_end) - self._slope
        ahead = torch.add(self._straight(math.exp(later)), change, alpha=-math.exp(later) * bend)
        change = (ahead - self._denoiser(ahead, math.exp(later))) / math.exp(later) - self._slope
        return torch.add(self._straight(end), change, alpha=-end / r2 * (math.expm1(h) / h - 1))

    def _straight(self, sigma: float) -> Tensor:
        return torch.add(self._x, self._slope, alpha=sigma - self._sigma)

    def _slope_at(self, share: float, log_end: float) -> Tensor:
        """The slope after the share `share` of the way; kept, for orders 2 and 3 look at the same place."""
        if self._further is None or self._further[0] != share:
            sigma = math.exp(self._log_sigma + share * (log_end - self._log_sigma))
            ahead = self._straight(sigma)
            self._further = share, (ahead - self._denoiser(ahead, sigma)) / sigma
        return self._further[1]


def _down(log_sigma: float, log_next: float, log_end: float, eta: float) -> tuple[float, float]:
    """(log of the level to step down to, deviation of the noise to add), not beyond `log_end`."""
    next_sigma = math.exp(log_next)
    down, _ = ancestral_step(math.exp(log_sigma), next_sigma, eta)
    if down <= math.exp(log_end):
        down = math.exp(log_end)
    return math.log(down), math.sqrt(max(next_sigma**2 - down**2, 0.0))


def _only_step(denoiser: Denoiser, x: Tensor, sigma: float) -> SamplerStep:
    """The step to 0 where there is no other level to go to."""
    denoised = denoiser(x, sigma)
    return SamplerStep(0, sigma, denoised, denoised)


def dpm_fast(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver-fast: Lu et al. 2022 (arXiv 2206.00927), section 3.4: as many network calls as steps, mostly threes.

    Even steps in log sigma, each of order 3, the last of order 1 or 2 where the calls do not divide by three. `eta`
    (1 by default) makes it ancestral. Of the given levels only the ends and their number count.
    """
    eta = 1.0 if options.eta is None else options.eta
    calls = len(sigmas) - 1
    if calls == 1:
        yield _only_step(denoiser, x, sigmas[0])
        return
    start, end = math.log(sigmas[0]), math.log(sigmas[-2])
    orders = [3] * (calls // 3) + [calls % 3] if calls % 3 else [3] * (calls // 3 - 1) + [2, 1]
    done = 0
    for number, order in enumerate(orders):
        log_sigma = start + (end - start) * number / len(orders)
        log_next = start + (end - start) * (number + 1) / len(orders)
        log_down, up = _down(log_sigma, log_next, end, eta)
        solver = _Solver(denoiser, x, log_sigma)
        x = (solver.first, solver.second, solver.third)[order - 1](log_down)
        if up > 0:
            x = torch.add(x, noise(math.exp(log_sigma), math.exp(log_next)), alpha=up * options.s_noise)
        done += order
        yield SamplerStep(done - 1, math.exp(log_sigma), x, solver.denoised)


def dpm_adaptive(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], noise: NoiseSource, options: SamplerOptions
) -> Iterator[SamplerStep]:
    """DPM-Solver-23: Lu et al. 2022 (arXiv 2206.00927), algorithm 3, with k-diffusion's step size controller.

    The difference between orders 2 and 3 decides how long a step may be, so the number of network calls is not the
    number of steps asked for; of the given levels only the ends count, and the index of a step says how many of them
    are passed. One length is chosen for the whole batch: give it one picture at a time. `eta` is 1 by default.
    """
    eta = 1.0 if options.eta is None else options.eta
    if len(sigmas) == 2:
        yield _only_step(denoiser, x, sigmas[0])
        return
    log_sigma, end = math.log(sigmas[0]), math.log(sigmas[-2])
    previous, length, passed = x, FIRST_STEP, 0
    error_order = 1.5 if eta else 3.0
    while log_sigma > end + END:
        log_next = max(end, log_sigma - length)
        log_down, up = _down(log_sigma, log_next, end, eta)
        solver = _Solver(denoiser, x, log_sigma)
        low, high = solver.second(log_down, r1=1 / 3), solver.third(log_down)
        allowed = torch.clamp(RELATIVE_TOLERANCE * torch.maximum(low.abs(), previous.abs()), min=ABSOLUTE_TOLERANCE)
        error = float(torch.linalg.vector_norm((low - high) / allowed)) / math.sqrt(x.numel())
        # An integral controller: k-diffusion's PID with its other two terms at 0.
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / error_order) - 1)
        length *= factor
        if factor < LEAST_FACTOR:
            continue
        previous = low
        x = high
        if up > 0:
            x = torch.add(high, noise(math.exp(log_sigma), math.exp(log_next)), alpha=up * options.s_noise)
        begun, log_sigma = math.exp(log_sigma), log_next
        above = sum(sigma > math.exp(log_sigma) for sigma in sigmas)
        passed = max(passed, above - 1) if log_sigma > end + END else len(sigmas) - 2
        yield SamplerStep(passed, begun, x, solver.denoised)
