"""Chooses the attention kernel by trying each on the device, dtype and head size at hand, never by importing alone.

A backend works when it runs and its result agrees with the same sum in float64. On a GPU the first that works in the
order of `BACKENDS` is taken. On the CPU, where the order of speed depends on the machine, the working ones are timed
briefly, and the first is passed over only for one that is clearly faster: the choice should not hang on chance, since
another kernel changes a picture's last bits.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from webui.core.errors import UserError
from webui.hardware.attention.backend import AttentionFunction, Backend
from webui.hardware.attention.chunked import CHUNKED
from webui.hardware.attention.sdpa import SDPA
from webui.hardware.attention.xformers_backend import XFORMERS

logger = logging.getLogger(__name__)

AUTOMATIC = "auto"
BACKENDS: tuple[Backend, ...] = (XFORMERS, SDPA, CHUNKED)

# Greatest error against float64 on inputs of unit deviation: about four units in the last place of an average of such
# numbers. TF32 and the reduced-precision sums of GPU kernels fit in; a kernel that computes something else does not.
TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
)
CLEARLY_FASTER = 2.0
_TRIED_HEADS, _TRIED_QUERIES, _TRIED_KEYS = 4, 256, 77  # a UNet's cross attention at 16 × 16 latent pixels
# Self attention at 32 × 32 latent pixels: large enough that a busy machine's pauses do not decide.
_TIMED_CHANNELS, _TIMED_LENGTH, _TIMED_RUNS = 128, 1024, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """The backend that runs, and for each of the others that could not, why."""

    name: str
    attend: AttentionFunction
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probed:
    """What one trial of a backend found: its function and best time, or why it was refused."""

    attend: AttentionFunction | None = None
    seconds: float = 0.0
    refused: str = ""


def select_attention(
    device: torch.device,
    dtype: torch.dtype,
    head_size: int | Iterable[int],
    override: str = AUTOMATIC,
    *,
    backends: tuple[Backend, ...] = BACKENDS,
) -> AttentionChoice:
    """The backend to use for heads of `head_size` channels (or of all of several sizes).

    `override` names one; "auto" chooses. Raises `UserError` when the named one is unknown or does not work here, or
    when none works. Trials are remembered for the life of the process.
    """
    sizes = tuple(sorted({head_size} if isinstance(head_size, int) else set(head_size)))
    return _select(device, dtype, sizes, override, backends)


@functools.lru_cache(maxsize=64)
def _select(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...], override: str, backends: tuple[Backend, ...]
) -> AttentionChoice:
    if override != AUTOMATIC and override not in (backend.name for backend in backends):
        names = ", ".join((AUTOMATIC, *(backend.name for backend in backends)))
        raise UserError(f"The attention backend {override!r} is not known; choose one of {names}.")
    probed = {backend.name: [_probe(backend, device, dtype, size) for size in sizes] for backend in backends}
    refused = {
        name: next(trial.refused for trial in trials if trial.refused)
        for name, trials in probed.items()
        if any(trial.refused for trial in trials)
    }
    working = {name: sum(trial.seconds for trial in trials) for name, trials in probed.items() if name not in refused}
    if override in refused:
        raise UserError(
            f"The attention backend {override!r} does not work here: {refused[override]}. Choose another, or"
            f" {AUTOMATIC!r}."
        )
    if not working:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(f"No attention backend works on {device} in {dtype}: {reasons}.")
    name = override if override != AUTOMATIC else _fastest(working, device)
    attend = probed[name][0].attend
    assert attend is not None  # a backend without a function was refused
    logger.info("Attention: %s%s", name, "".join(f"; {other}: {reason}" for other, reason in refused.items()))
    return AttentionChoice(name=name, attend=attend, refused=MappingProxyType(refused))


def _fastest(working: Mapping[str, float], device: torch.device) -> str:
    """The first of `working` (name → seconds), or on the CPU one that is clearly faster."""
    first = next(iter(working))
    if device.type != "cpu":
        return first
    best = min(working, key=lambda name: working[name])
    return best if working[first] > working[best] * CLEARLY_FASTER else first


@functools.lru_cache(maxsize=64)
def _probe(backend: Backend, device: torch.device, dtype: torch.dtype, head_size: int) -> _Probed:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, _TRIED_HEADS, length, head_size, generator=generator).to(device, dtype)
        for length in (_TRIED_QUERIES, _TRIED_KEYS, _TRIED_KEYS)
    )
    try:
        attend = backend.load()
        with torch.no_grad():
            error = _error(attend(query, key, value), query, key, value)
            seconds = _time(attend, dtype, head_size) if device.type == "cpu" else 0.0
    except ImportError as problem:
        return _Probed(refused=f"it is not installed ({_first_line(problem)})")
    except Exception as problem:  # a kernel may fail in any way; that it does is the answer
        return _Probed(refused=f"it fails with {type(problem).__name__}: {_first_line(problem)}")
    if not error <= TOLERANCES[dtype]:  # written so that NaN is refused too
        return _Probed(refused=f"its result is wrong by {error:.1e}")
    return _Probed(attend=attend, seconds=seconds)


def _error(got: Tensor, query: Tensor, key: Tensor, value: Tensor) -> float:
    """The greatest distance from the same attention in float64 on the CPU."""
    query, key, value = (tensor.cpu().double() for tensor in (query, key, value))
    wanted = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value
    return float((got.cpu().double() - wanted).abs().max())


def _time(attend: AttentionFunction, dtype: torch.dtype, head_size: int) -> float:
    """The best of some runs on the CPU in seconds: what others do on the machine only ever adds."""
    inputs = torch.ones(3, 2, max(1, _TIMED_CHANNELS // head_size), _TIMED_LENGTH, head_size, dtype=dtype)
    attend(*inputs)
    seconds: list[float] = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        attend(*inputs)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
