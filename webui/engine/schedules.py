"""Which noise levels a sampler visits: sigma tables and the schedule types, as pure functions on Python floats.

Sigma is the standard deviation of the noise in ``x = x0 + sigma · noise``, the convention of Karras et al. 2022
(arXiv 2206.00364) that k-diffusion brought to Stable Diffusion. Everything here is worked out before the first step,
in double precision and without tensors, so that the denoising loop never has to ask a device for a number.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from webui.core.errors import InvalidRequest
from webui.core.requests import ScheduleOptions
from webui.engine import aligned_steps

# Taken for the alpha_bar of 0 that a zero-terminal-SNR model has at its last timestep, where sigma would be infinite:
# the value that A1111 and its relatives take, a sigma of 4519.
SMALLEST_ALPHA = 4.8973451890853435e-08

KARRAS_RHO = 7.0
POLYEXPONENTIAL_RHO = 1.0


@dataclass(frozen=True, slots=True)
class SigmaTable:
    """The noise levels that a network was trained on: `sigmas` ascends, one for each training timestep.

    `is_xl` says that they are SDXL's, for which Align Your Steps has levels of its own.
    """

    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]
    is_xl: bool = False

    @classmethod
    def from_alphas(cls, alphas_cumprod: Sequence[float], *, is_xl: bool = False) -> SigmaTable:
        """From alpha_bar of each timestep (0…1, descending): sigma² = (1 - alpha_bar) / alpha_bar."""
        sigmas = tuple(
            math.sqrt((1 - alpha) / alpha) for alpha in (max(value, SMALLEST_ALPHA) for value in alphas_cumprod)
        )
        return cls(sigmas, tuple(math.log(sigma) for sigma in sigmas), is_xl)

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


@functools.lru_cache(maxsize=1)
def stable_diffusion_table() -> SigmaTable:
    """The levels of Stable Diffusion 1, 2 and XL: 1,000 betas from 0.00085 to 0.012, linear in their square roots."""
    alpha, alphas = 1.0, []
    for root in _line(math.sqrt(0.00085), math.sqrt(0.012), 1000):
        alpha *= 1 - root * root
        alphas.append(alpha)
    return SigmaTable.from_alphas(alphas)


Schedule = Callable[[SigmaTable, int, ScheduleOptions], list[float]]


def _line(start: float, end: float, count: int) -> list[float]:
    """`count` even points from `start` to `end`, both included; one point is `start`."""
    if count == 1:
        return [start]
    return [start + (end - start) * index / (count - 1) for index in range(count)]


def _ends(table: SigmaTable, options: ScheduleOptions) -> tuple[float, float]:
    """(least, greatest) sigma: the options' or the table's. Raises `InvalidRequest` if they are not in that order."""
    low = table.sigma_min if options.sigma_min is None else options.sigma_min
    high = table.sigma_max if options.sigma_max is None else options.sigma_max
    if not 0 < low < high:
        raise InvalidRequest(
            f"The schedule's sigmas would go from {high:g} down to {low:g}; give a min sigma below the max sigma."
        )
    return low, high


def _timesteps_between(table: SigmaTable, options: ScheduleOptions) -> tuple[float, float]:
    """The timesteps of `_ends`, the noisier first."""
    low, high = _ends(table, options)
    return table.timestep(high), table.timestep(low)


def uniform(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even in timesteps, both ends included: k-diffusion's ``get_sigmas``, what most samplers of A1111 default to."""
    return [table.sigma(timestep) for timestep in _line(len(table.sigmas) - 1, 0, steps)] + [0.0]


def normal(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """`uniform` between the ends that the options give."""
    return [table.sigma(timestep) for timestep in _line(*_timesteps_between(table, options), steps)] + [0.0]


def karras(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even in sigma^(1/rho), rho 7 unless told: Karras et al. 2022, equation 5."""
    return karras_between(*_ends(table, options), steps, options.rho or KARRAS_RHO)


def karras_between(sigma_min: float, sigma_max: float, steps: int, rho: float = KARRAS_RHO) -> list[float]:
    """Karras' spacing from `sigma_max` to `sigma_min`, then 0."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [root**rho for root in _line(high, low, steps)] + [0.0]


def exponential(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even in log sigma."""
    low, high = (math.log(sigma) for sigma in _ends(table, options))
    return [math.exp(value) for value in _line(high, low, steps)] + [0.0]


def polyexponential(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """A polynomial of degree rho (1 unless told) in log sigma, as k-diffusion spaces it."""
    low, high = (math.log(sigma) for sigma in _ends(table, options))
    shares = (share ** (options.rho or POLYEXPONENTIAL_RHO) for share in _line(1, 0, steps))
    return [math.exp(low + share * (high - low)) for share in shares] + [0.0]


def sgm_uniform(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even in timesteps with the last point left out, as Stability's generative-models spaces them ("trailing")."""
    return [table.sigma(timestep) for timestep in _line(*_timesteps_between(table, options), steps + 1)[:-1]] + [0.0]


def kl_optimal(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even in the arc tangent of sigma: Sabour et al. 2024 (arXiv 2404.14507), theorem 3.1.

    Their last level is the least sigma; here, as in every schedule, the last one is 0.
    """
    low, high = _ends(table, options)
    angles = _line(math.atan(high), math.atan(low), steps + 1)[:-1]
    return [math.tan(angle) for angle in angles] + [0.0]


def simple(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Every (N / steps)-th entry of the training table, counted from the noisy end, with no interpolation."""
    stride = len(table.sigmas) / steps
    return [table.sigmas[-1 - int(index * stride)] for index in range(steps)] + [0.0]


def ddim(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Timesteps 1, 1 + k, 1 + 2k … with k = N // steps: the spacing of Song et al.'s DDIM code ("leading")."""
    stride = max(len(table.sigmas) // steps, 1)
    timesteps = [min(1 + index * stride, len(table.sigmas) - 1) for index in range(steps)]
    return [table.sigmas[timestep] for timestep in reversed(timesteps)] + [0.0]


def beta(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Sigmas at even quantiles of the Beta distribution: Lee et al. 2024 (arXiv 2407.12173), as A1111 applies it.

    The paper spaces timesteps so; A1111 spaces sigma itself between its ends, and pictures are exchanged by A1111's.
    """
    from scipy.special import betaincinv  # here, for most requests do without it

    low, high = _ends(table, options)
    shares = betaincinv(options.alpha, options.beta, _line(1, 0, steps))
    return [low + float(share) * (high - low) for share in shares] + [0.0]


def turbo(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Whole timesteps N, N - k, N - 2k … less one, k = N / steps: what few-step models take (diffusers' "trailing")."""
    count = len(table.sigmas)
    timesteps = (round(count * (steps - index) / steps) - 1 for index in range(steps))
    return [table.sigmas[min(max(timestep, 0), count - 1)] for timestep in timesteps] + [0.0]


def lcm(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
    """Even between the ends of the 50 timesteps that LCM distills on, 999 to 19: what A1111's LCM defaults to."""
    last = len(table.sigmas) - 1
    return [table.sigma(timestep) for timestep in _line(last, last - 49 * (len(table.sigmas) // 50), steps)] + [0.0]


def _aligned(levels: aligned_steps.Levels) -> Schedule:
    """The schedule with `levels` at its own number of steps, and log-linearly between them at any other."""

    def schedule(table: SigmaTable, steps: int, options: ScheduleOptions) -> list[float]:
        own = levels.xl if table.is_xl else levels.sd
        logs = [math.log(sigma) for sigma in own]
        sigmas = []
        for place in _line(0, len(logs) - 1, steps):
            low = min(int(place), len(logs) - 2)
            sigmas.append(math.exp(logs[low] + (place - low) * (logs[low + 1] - logs[low])))
        return [*(own if steps == len(own) else sigmas), 0.0]

    return schedule


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "Uniform": uniform,
        "Karras": karras,
        "Exponential": exponential,
        "Polyexponential": polyexponential,
        "SGM Uniform": sgm_uniform,
        "KL Optimal": kl_optimal,
        "Align Your Steps": _aligned(aligned_steps.ALIGN_YOUR_STEPS),
        "Simple": simple,
        "Normal": normal,
        "DDIM": ddim,
        "Beta": beta,
        "Turbo": turbo,
        "Align Your Steps GITS": _aligned(aligned_steps.GITS),
        # A1111's Align Your Steps has 11 levels already; relatives list it under this name too.
        "Align Your Steps 11": _aligned(aligned_steps.ALIGN_YOUR_STEPS),
        "Align Your Steps 32": _aligned(aligned_steps.ALIGN_YOUR_STEPS_32),
    }
)

# What "Automatic" may stand for besides: a sampler's own spacing, which is not offered by a name.
_OWN: Mapping[str, Schedule] = MappingProxyType({"LCM": lcm})


def make_sigmas(
    schedule_type: str,
    table: SigmaTable,
    steps: int,
    options: ScheduleOptions,
    *,
    automatic: str,
    discard_next_to_last: bool = False,
) -> list[float]:
    """The ``steps + 1`` noise levels from noisy to clean, the last of them 0.

    `automatic` is the schedule type that "Automatic" stands for, the sampler's own. With `discard_next_to_last` (the
    sampler's wish) or the option of that name, one level more is made and the last before 0 left out. An unknown type
    or ends in the wrong order raise `InvalidRequest`.
    """
    known = {**SCHEDULES, **_OWN} if schedule_type == "Automatic" else SCHEDULES
    name = automatic if schedule_type == "Automatic" else schedule_type
    if name not in known:
        raise InvalidRequest(f"Schedule type {name!r} is not known; choose one of {', '.join(SCHEDULES)}.")
    if not (discard_next_to_last or options.discard_next_to_last):
        return known[name](table, steps, options)
    sigmas = known[name](table, steps + 1, options)
    return [*sigmas[:-2], sigmas[-1]]
