"""Tries one attention backend on the machine: does it run, is it right, how long does it take."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from webui.hardware.attention.backend import AttentionFunction, Backend

Clock = Callable[[], float]

# Greatest error against float64 on inputs of unit deviation: about four units in the last place of an average of such
# numbers. TF32 and the reduced-precision sums of GPU kernels fit in; a kernel that computes something else does not.
TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
)
_TRIED_HEADS, _TRIED_QUERIES, _TRIED_KEYS = 4, 256, 77  # a UNet's cross attention at 16 × 16 latent pixels
_TIMED_BATCH, _TIMED_CHANNELS = 2, 640
_CPU_CHANNELS, _CPU_HEADS = 128, 8
_RUNS, _CALLS_A_RUN = 3, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a kernel must run under: all of these dtypes and channels a head, on sequences of about `length` places."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    head_sizes: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A backend's function, or in `refused` why it has none here."""

    attend: AttentionFunction | None = None
    refused: str = ""


def try_backend(backend: Backend, conditions: Conditions) -> Trial:
    """Whether `backend` loads, runs and agrees with attention in float64 under all of `conditions`."""
    attend: AttentionFunction | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells all kernels that it passed over; the refusal says enough
        for dtype in conditions.dtypes:
            for size in conditions.head_sizes:
                try:
                    attend = backend.load()
                    error = _error(attend, conditions.device, dtype, size)
                except ImportError as problem:
                    return Trial(refused=f"it is not installed ({_first_sentence(problem)})")
                except Exception as problem:  # a kernel may fail in any way; that it does is the answer
                    return Trial(refused=f"it fails with {type(problem).__name__}: {_first_sentence(problem)}")
                if not error <= TOLERANCES[dtype] * backend.slack:  # written so that NaN is refused too
                    return Trial(refused=f"its result is wrong by {error:.1e}")
    return Trial(attend=attend)


def time_backend(
    attend: AttentionFunction,
    conditions: Conditions,
    clock: Clock = time.perf_counter,
    *,
    enough_s: float = math.inf,
) -> float:
    """Seconds that a call takes under `conditions`, summed over the head sizes, in the first of the dtypes.

    The best of some runs: what others do on the machine only ever adds. After a run that takes more than `enough_s` no
    other follows. On a GPU a first call is not counted.
    """
    return sum(_time(attend, conditions, size, clock, enough_s) for size in conditions.head_sizes)


@torch.no_grad()
def _time(attend: AttentionFunction, conditions: Conditions, size: int, clock: Clock, enough_s: float) -> float:
    device = conditions.device
    on_cpu = device.type == "cpu"
    heads = max(1, min(_CPU_HEADS, _CPU_CHANNELS // size) if on_cpu else _TIMED_CHANNELS // size)
    shape = (_TIMED_BATCH, heads, conditions.length, size)
    query, key, value = torch.ones(3, *shape, dtype=conditions.dtypes[0], device=device).unbind(0)
    calls = 1 if on_cpu else _CALLS_A_RUN
    if not on_cpu:
        attend(query, key, value)
    seconds: list[float] = []
    for _ in range(_RUNS):
        wait_for(device)
        started = clock()
        for _ in range(calls):
            attend(query, key, value)
        wait_for(device)
        seconds.append((clock() - started) / calls)
        if seconds[-1] > enough_s:
            break
    return min(seconds)


def wait_for(device: torch.device) -> None:
    """Returns once `device` has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.no_grad()
def _error(attend: AttentionFunction, device: torch.device, dtype: torch.dtype, head_size: int) -> float:
    """The greatest distance from the same attention in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, _TRIED_HEADS, length, head_size, generator=generator).to(dtype)
        for length in (_TRIED_QUERIES, _TRIED_KEYS, _TRIED_KEYS)
    )
    got = attend(query.to(device), key.to(device), value.to(device))
    return _greatest(got.cpu().double() - _exact(query.double(), key.double(), value.double()))


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value


def _greatest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _first_sentence(error: Exception) -> str:
    """The first sentence: what comes after it is advice to programmers, or a trace."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".")[:200] if lines else type(error).__name__
