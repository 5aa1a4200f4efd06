"""Chooses the attention kernel by trying each on the device, dtype, head size and length at hand, never by importing.

A backend works when it runs and its result agrees with the same sum in float64. Those that work are timed briefly, and
the first in the order of `BACKENDS` is passed over only for one that is clearly faster: the choice should not hang on
chance, since another kernel changes a picture's last bits. What was chosen is remembered.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from webui.core.errors import UserError
from webui.hardware.attention.backend import AttentionFunction, Backend
from webui.hardware.attention.chunked import CHUNKED
from webui.hardware.attention.flash_attn_backend import FLASH_ATTN
from webui.hardware.attention.remembered import Choice, RememberedChoices
from webui.hardware.attention.sage_backend import SAGE
from webui.hardware.attention.sdpa import SDPA, SDPA_CUDNN, SDPA_EFFICIENT, SDPA_FLASH, SDPA_MATH
from webui.hardware.attention.split import SPLIT
from webui.hardware.attention.trial import Clock, Conditions, Trial, time_backend, try_backend
from webui.hardware.attention.xformers_backend import XFORMERS
from webui.hardware.device import describe

logger = logging.getLogger(__name__)

AUTOMATIC = "auto"
BACKENDS: tuple[Backend, ...] = (
    XFORMERS,
    SDPA,
    SDPA_FLASH,
    SDPA_CUDNN,
    SDPA_EFFICIENT,
    FLASH_ATTN,
    SAGE,
    CHUNKED,
    SPLIT,
    SDPA_MATH,
)

# How many times faster than the first another must be. A busy CPU's timings vary by more than a GPU's.
CLEARLY_FASTER_ON_CPU, CLEARLY_FASTER_ON_GPU = 2.0, 1.1
SHORTEST, LONGEST = 1024, 16384  # lengths that are told apart, in powers of two; on the CPU all are timed as the first


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """The backend that runs, and for each of the others that could not, why.

    `seconds` are those of a call for each that was timed; none were where there was only one to choose.
    """

    name: str
    attend: AttentionFunction
    refused: Mapping[str, str]
    seconds: Mapping[str, float]


class AttentionSelector:
    """Chooses among `backends`, and keeps what it found in `remembered` and for its own life. For one thread."""

    def __init__(
        self,
        remembered: RememberedChoices | None = None,
        *,
        backends: tuple[Backend, ...] = BACKENDS,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._backends = backends
        self._remembered = RememberedChoices() if remembered is None else remembered
        self._clock = clock
        self._trials: dict[tuple[str, Conditions], Trial] = {}
        self._said: set[str] = set()

    def select(
        self,
        device: torch.device,
        dtype: torch.dtype | Iterable[torch.dtype],
        head_size: int | Iterable[int],
        *,
        length: int = SHORTEST,
        override: str = AUTOMATIC,
    ) -> AttentionChoice:
        """The backend to use for heads of `head_size` channels (or of all of several sizes, and of several dtypes).

        `length` is the longest sequence that will be attended to, in places. `override` names a backend; "auto"
        chooses. Raises `UserError` when the named one is unknown or does not work here, or when none works.
        """
        conditions = _conditions(device, dtype, head_size, length)
        chosen = self._chosen(conditions) if override == AUTOMATIC else self._named(override, conditions)
        self._say(chosen)
        return chosen

    def verdicts(
        self, device: torch.device, dtype: torch.dtype, head_size: int | Iterable[int], *, length: int = SHORTEST
    ) -> dict[str, str]:
        """For each backend what became of it when one was chosen automatically, in a few words."""
        conditions = _conditions(device, dtype, head_size, length)
        choice = self._chosen(conditions)
        return {backend.name: self._verdict(backend, conditions, choice) for backend in self._backends}

    def _verdict(self, backend: Backend, conditions: Conditions, choice: AttentionChoice) -> str:
        took = choice.seconds.get(backend.name)
        said = "" if took is None else f", {took * 1000:.3g} ms a call"
        if backend.name == choice.name:
            return f"chosen{said}"
        refused = choice.refused.get(backend.name) or self._try(backend, conditions).refused
        if refused:
            return f"refused: {refused}"
        return f"works{said}" if said else "works, for those who name it"

    def _named(self, name: str, conditions: Conditions) -> AttentionChoice:
        backend = next((backend for backend in self._backends if backend.name == name), None)
        if backend is None:
            names = ", ".join((AUTOMATIC, *(backend.name for backend in self._backends)))
            raise UserError(f"The attention backend {name!r} is not known; choose one of {names}.")
        trial = self._try(backend, conditions)
        if trial.attend is None:
            raise UserError(
                f"The attention backend {name!r} does not work here: {trial.refused}. Choose another, or {AUTOMATIC!r}."
            )
        return AttentionChoice(name=name, attend=trial.attend, refused={}, seconds={})

    def _chosen(self, conditions: Conditions) -> AttentionChoice:
        key = _key(conditions)
        known = self._remembered.get(key)
        if known is not None:
            backend = next((backend for backend in self._backends if backend.name == known.name), None)
            trial = Trial() if backend is None else self._try(backend, conditions)
            if trial.attend is not None:
                return _choice(known, trial.attend)
        chosen = self._compared(conditions)
        self._remembered.put(key, Choice(name=chosen.name, seconds=dict(chosen.seconds), refused=dict(chosen.refused)))
        return chosen

    def _compared(self, conditions: Conditions) -> AttentionChoice:
        """Tries all that may be chosen here, and times those that work, if there are several."""
        device = conditions.device
        trials = {backend.name: self._try(backend, conditions) for backend in self._backends if _fits(backend, device)}
        refused = {name: trial.refused for name, trial in trials.items() if trial.attend is None}
        working = {name: trial.attend for name, trial in trials.items() if trial.attend is not None}
        if not working:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise UserError(f"No attention backend works on {device} in {conditions.dtypes[0]}: {reasons}.")
        seconds: dict[str, float] = {}
        if len(working) > 1:
            for name, attend in working.items():
                try:
                    first = next(iter(seconds.values()), math.inf)  # what is slower than it is not chosen anyway
                    seconds[name] = time_backend(attend, conditions, self._clock, enough_s=first)
                except Exception as problem:  # it may want more memory than there is, at this length
                    refused[name] = f"it fails at length {conditions.length} with {type(problem).__name__}"
        name = _fastest(seconds, device) if seconds else next(iter(working))
        return AttentionChoice(name=name, attend=working[name], refused=MappingProxyType(refused), seconds=seconds)

    def _try(self, backend: Backend, conditions: Conditions) -> Trial:
        key = (backend.name, conditions)
        if key not in self._trials:
            self._trials[key] = try_backend(backend, conditions)
        return self._trials[key]

    def _say(self, choice: AttentionChoice) -> None:
        refusals = "".join(f"; {other}: {reason}" for other, reason in choice.refused.items())
        sentence = f"Attention: {choice.name}{refusals}"
        if sentence not in self._said:
            self._said.add(sentence)
            logger.info("%s", sentence)


def _conditions(
    device: torch.device, dtype: torch.dtype | Iterable[torch.dtype], head_size: int | Iterable[int], length: int
) -> Conditions:
    return Conditions(
        device=device,
        dtypes=(dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype),
        head_sizes=tuple(sorted({head_size} if isinstance(head_size, int) else set(head_size))),
        length=_class_of(length, device),
    )


def _choice(known: Choice, attend: AttentionFunction) -> AttentionChoice:
    return AttentionChoice(name=known.name, attend=attend, refused=known.refused, seconds=known.seconds)


def _fits(backend: Backend, device: torch.device) -> bool:
    return backend.chosen == "anywhere" or (backend.chosen == "on a GPU" and device.type != "cpu")


def _class_of(length: int, device: torch.device) -> int:
    """The power of two that stands for sequences of `length` places."""
    if device.type == "cpu":
        return SHORTEST
    return min(LONGEST, max(SHORTEST, 1 << (length - 1).bit_length()))


def _key(conditions: Conditions) -> str:
    dtypes = "+".join(str(dtype).removeprefix("torch.") for dtype in conditions.dtypes)
    sizes = "+".join(str(size) for size in conditions.head_sizes)
    return f"{describe(conditions.device)}, {dtypes}, heads of {sizes}, length {conditions.length}"


def _fastest(seconds: Mapping[str, float], device: torch.device) -> str:
    """The first of `seconds` (in the order of preference), or one that is clearly faster."""
    first = next(iter(seconds))
    best = min(seconds, key=lambda name: seconds[name])
    clearly = CLEARLY_FASTER_ON_CPU if device.type == "cpu" else CLEARLY_FASTER_ON_GPU
    return best if seconds[first] > seconds[best] * clearly else first
