"""Weights as GGUF files hold them: blocks of a few numbers each, with factors of their own, widened as they are used.

Owns what the bytes of a block mean; files are `webui.checkpoints.containers.gguf_file`'s. The formats are ggml's
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h), and the numbers are bit for bit those of the `gguf`
package. diffusers has the same in torch, but makes small tensors on the host in each call, for which a graphics card is
waited for at every layer, and which no CUDA graph can record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

_GREATEST_BYTE = 127.0
# What the CPU widens at a time: little enough for its caches, and enough for its threads not to wait for each other.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKind:
    """One way of packing: `numbers` of them take `bytes`, of which those from each of `factors` on are a float16.

    `widen` takes blocks (count, bytes) of uint8 and gives their numbers (count, numbers) in float32.
    """

    numbers: int
    bytes: int
    factors: Sequence[int]
    widen: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A weight of `shape` in blocks (count, bytes) of int8, its numbers in their order; `kind` is a name in `KINDS`."""

    numbers: Tensor
    kind: str
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The weight itself, float32."""
        return widened(self.numbers, self.kind, torch.float32).view(self.shape)

    def is_finite(self) -> bool:
        """Whether all numbers are: whether the factors of the blocks are."""
        factors = (_half(self.numbers.view(torch.uint8), at) for at in KINDS[self.kind].factors)
        return all(bool(factor.isfinite().all()) for factor in factors)

    def to(self, device: torch.device) -> Blocks:
        """Itself on `device`."""
        return replace(self, numbers=self.numbers.to(device))

    def reshape(self, shape: Sequence[int]) -> Blocks:
        """Itself in another shape of as many numbers."""
        return replace(self, shape=tuple(shape))

    def split(self, rows: Sequence[int]) -> Sequence[Tensor | Blocks]:
        """The weight in pieces of so many rows, in blocks if none is shared between two pieces, else in float32."""
        row = math.prod(self.shape[1:])
        count = KINDS[self.kind].numbers
        if any(number * row % count for number in rows):
            return self.dense().split(list(rows))
        pieces = self.numbers.split([number * row // count for number in rows])
        return [
            replace(self, numbers=piece, shape=(number, *self.shape[1:]))
            for piece, number in zip(pieces, rows, strict=True)
        ]


def widened(numbers: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """What blocks (count, bytes) of int8 hold: (count, numbers of one) in `dtype`, computed in float32."""
    widen, blocks = KINDS[kind].widen, numbers.view(torch.uint8)
    if blocks.device.type != "cpu" or torch.compiler.is_compiling():
        return widen(blocks).to(dtype)
    found = torch.empty(len(blocks), KINDS[kind].numbers, dtype=dtype)
    at_once = _AT_ONCE // KINDS[kind].numbers
    for some, place in zip(blocks.split(at_once), found.split(at_once), strict=True):
        place.copy_(widen(some))
    return found


def pack_q8(weight: Tensor) -> Tensor:
    """Blocks of Q8_0 that are nearest to `weight`, of which there must be a multiple of 32 numbers."""
    rows = weight.float().reshape(-1, KINDS["Q8_0"].numbers)
    factors = (rows.abs().amax(1, keepdim=True) / _GREATEST_BYTE).half()
    steps = torch.where(factors > 0, rows / factors.float(), 0).round().clamp(-_GREATEST_BYTE, _GREATEST_BYTE)
    return torch.cat([factors.view(torch.int8), steps.to(torch.int8)], dim=1)


# --- parts of a block; all take (count, bytes) of uint8


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at`: (count, 1) float32."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _fields(packed: Tensor, bits: int, group: int) -> Tensor:
    """Numbers of so many `bits`: of each `group` of bytes the lowest bits of all, then those above them, and so on."""
    groups = packed.view(len(packed), -1, 1, group)
    mask = (1 << bits) - 1
    return torch.cat([(groups >> shift) & mask for shift in range(0, 8, bits)], dim=2).view(len(packed), -1)


def _bits(packed: Tensor) -> Tensor:
    """The bits of bytes one after another, the lowest first."""
    return torch.stack([(packed >> shift) & 1 for shift in range(8)], dim=2).view(len(packed), -1)


def _times(factors: Tensor, numbers: Tensor) -> Tensor:
    """Each of `factors` (count, groups) with the numbers of its group: (count, groups, numbers of one)."""
    return factors.unsqueeze(2) * numbers.view(*factors.shape, -1)


# --- kinds


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 4, 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 4, 16) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _fields(blocks[:, 6:], 4, 16) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (numbers.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _fields(blocks[:, 8:], 4, 16) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * numbers + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    numbers = _fields(blocks[:, 16:80], 2, 32)
    least = _half(blocks, 82) * (scales >> 4)
    return (_times(_half(blocks, 80) * (scales & 15), numbers) - least.unsqueeze(2)).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    scales = _fields(blocks[:, 96:104], 4, 8) | (_fields(blocks[:, 104:108], 2, 4) << 4)
    missing = _fields(blocks[:, :32], 1, 32) ^ 1  # a bit that is not set takes four away
    numbers = _fields(blocks[:, 32:96], 2, 32).float() - (missing << 2)
    return _times(_half(blocks, 108) * (scales.float() - 32), numbers).flatten(1)


def _scales_and_leasts(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K, the eight groups' factors and what is taken off: both (count, 8) float32.

    Twelve bytes hold them in six bits each: the first four of both whole, of the others the lower bits in the last four
    bytes and the upper two above those of the first.
    """
    scale, least, low = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = torch.cat([scale & 63, (low & 15) | ((scale >> 2) & 48)], dim=1)
    leasts = torch.cat([least & 63, (low >> 4) | ((least >> 2) & 48)], dim=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * leasts


def _q4_k(blocks: Tensor) -> Tensor:
    scales, leasts = _scales_and_leasts(blocks)
    return (_times(scales, _fields(blocks[:, 16:], 4, 32)) - leasts.unsqueeze(2)).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, leasts = _scales_and_leasts(blocks)
    numbers = _fields(blocks[:, 48:], 4, 32) | (_fields(blocks[:, 16:48], 1, 32) << 4)
    return (_times(scales, numbers) - leasts.unsqueeze(2)).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    numbers = _fields(blocks[:, :128], 4, 64) | (_fields(blocks[:, 128:192], 2, 32) << 4)
    return _times(_half(blocks, 208) * blocks[:, 192:208].view(torch.int8), numbers.float() - 32).flatten(1)


KINDS: Mapping[str, BlockKind] = MappingProxyType(
    {
        "Q4_0": BlockKind(numbers=32, bytes=18, factors=(0,), widen=_q4_0),
        "Q4_1": BlockKind(numbers=32, bytes=20, factors=(0, 2), widen=_q4_1),
        "Q5_0": BlockKind(numbers=32, bytes=22, factors=(0,), widen=_q5_0),
        "Q5_1": BlockKind(numbers=32, bytes=24, factors=(0, 2), widen=_q5_1),
        "Q8_0": BlockKind(numbers=32, bytes=34, factors=(0,), widen=_q8_0),
        "Q2_K": BlockKind(numbers=256, bytes=84, factors=(80, 82), widen=_q2_k),
        "Q3_K": BlockKind(numbers=256, bytes=110, factors=(108,), widen=_q3_k),
        "Q4_K": BlockKind(numbers=256, bytes=144, factors=(0, 2), widen=_q4_k),
        "Q5_K": BlockKind(numbers=256, bytes=176, factors=(0, 2), widen=_q5_k),
        "Q6_K": BlockKind(numbers=256, bytes=210, factors=(208,), widen=_q6_k),
    }
)
