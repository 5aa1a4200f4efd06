"""Which noise levels a sampler visits: sigma tables and A1111's schedule types, as pure functions on Python floats.

Sigma is the standard deviation of the noise in ``x = x0 + sigma · noise``, the convention of Karras et al. 2022
(arXiv 2206.00364) that k-diffusion brought to Stable Diffusion. Everything here is worked out before the first step,
in double precision and without tensors, so that the denoising loop never has to ask a device for a number.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from webui.core.errors import InvalidRequest

# The least alpha_bar there is: a zero-terminal-SNR model says 0 at its last timestep, where sigma would be infinite.
SMALLEST_ALPHA = 2.0**-24


@dataclass(frozen=True, slots=True)
class SigmaTable:
    """The noise levels that a network was trained on: `sigmas` ascends, one for each training timestep."""

    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]

    @classmethod
    def from_alphas(cls, alphas_cumprod: Sequence[float]) -> SigmaTable:
        """From alpha_bar of each timestep (0…1, descending): sigma² = (1 - alpha_bar) / alpha_bar."""
        sigmas = tuple(
            math.sqrt((1 - alpha) / alpha) for alpha in (max(value, SMALLEST_ALPHA) for value in alphas_cumprod)
        )
        return cls(sigmas, tuple(math.log(sigma) for sigma in sigmas))

    @property
    def sigma_min(self) -> float:
        """The noise level of the first timestep."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The noise level of the last timestep."""
        return self.sigmas[-1]

    def timestep(self, sigma: float) -> float:
        """The timestep, whole or between two, whose noise level is `sigma`: linear in log sigma, clamped."""
        if sigma <= self.sigmas[0]:
            return 0.0
        if sigma >= self.sigmas[-1]:
            return float(len(self.sigmas) - 1)
        low = bisect_right(self.sigmas, sigma) - 1
        below, above = self.log_sigmas[low], self.log_sigmas[low + 1]
        return low + (math.log(sigma) - below) / (above - below)

    def sigma(self, timestep: float) -> float:
        """The inverse of `timestep`, for 0 ≤ timestep ≤ len(sigmas) - 1."""
        low = min(int(timestep), len(self.sigmas) - 2)
        share = timestep - low
        return math.exp((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[low + 1])


Schedule = Callable[[SigmaTable, int], list[float]]


def _line(start: float, end: float, count: int) -> list[float]:
    """`count` even points from `start` to `end`, both included; one point is `start`."""
    if count == 1:
        return [start]
    return [start + (end - start) * index / (count - 1) for index in range(count)]


def uniform(table: SigmaTable, steps: int) -> list[float]:
    """Even in timesteps, both ends included: k-diffusion's ``get_sigmas``, what most samplers of A1111 default to."""
    return [table.sigma(timestep) for timestep in _line(len(table.sigmas) - 1, 0, steps)] + [0.0]


def karras(table: SigmaTable, steps: int, rho: float = 7.0) -> list[float]:
    """Even in sigma^(1/rho): Karras et al. 2022, equation 5."""
    high, low = table.sigma_max ** (1 / rho), table.sigma_min ** (1 / rho)
    return [root**rho for root in _line(high, low, steps)] + [0.0]


def exponential(table: SigmaTable, steps: int) -> list[float]:
    """Even in log sigma."""
    logs = _line(table.log_sigmas[-1], table.log_sigmas[0], steps)
    return [math.exp(value) for value in logs] + [0.0]


def sgm_uniform(table: SigmaTable, steps: int) -> list[float]:
    """Even in timesteps with the last point left out, as Stability's generative-models spaces them ("trailing")."""
    return [table.sigma(timestep) for timestep in _line(len(table.sigmas) - 1, 0, steps + 1)[:-1]] + [0.0]


def simple(table: SigmaTable, steps: int) -> list[float]:
    """Every (N / steps)-th entry of the training table, counted from the noisy end, with no interpolation."""
    stride = len(table.sigmas) / steps
    return [table.sigmas[-1 - int(index * stride)] for index in range(steps)] + [0.0]


def ddim(table: SigmaTable, steps: int) -> list[float]:
    """Timesteps 1, 1 + k, 1 + 2k … with k = N // steps: the spacing of Song et al.'s DDIM code ("leading")."""
    stride = max(len(table.sigmas) // steps, 1)
    timesteps = [min(1 + index * stride, len(table.sigmas) - 1) for index in range(steps)]
    return [table.sigmas[timestep] for timestep in reversed(timesteps)] + [0.0]


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "Uniform": uniform,
        "Karras": karras,
        "Exponential": exponential,
        "SGM Uniform": sgm_uniform,
        "Simple": simple,
        # "Normal" spaces timesteps evenly with both ends: over the whole table that is what "Uniform" does.
        "Normal": uniform,
        "DDIM": ddim,
    }
)


def make_sigmas(schedule_type: str, table: SigmaTable, steps: int, *, automatic: str) -> list[float]:
    """The ``steps + 1`` noise levels from noisy to clean, the last of them 0.

    `automatic` is the schedule type that "Automatic" stands for, the sampler's own. An unknown type raises
    `InvalidRequest`.
    """
    name = automatic if schedule_type == "Automatic" else schedule_type
    if name not in SCHEDULES:
        raise InvalidRequest(f"Schedule type {name!r} is not known; choose one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[name](table, steps)
