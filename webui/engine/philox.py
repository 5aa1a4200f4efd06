"""The random numbers of an NVIDIA card, computed on the CPU, so that a card's pictures can be made anywhere.

Owns the generator and the normal transform; which picture draws from which stream is the business of `noise`.

The counter-based generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
section 3.3). torch's CUDA `randn` gives element i the first of the four words at counter (call, 0, i, 0) under the
seed as key, and curand's Box-Muller transform makes it normal. That is how torch divides the work as long as the card
has a thread for each element, so for every latent up to some hundred thousand numbers (1,024 pixels square has 65,536).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
# Salmon et al. 2011, table 2: multipliers; and the Weyl constants by which the key is bumped (section 3.3).
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_SHIFT = np.uint64(32)

# curand's constants in single precision: 2⁻³², and 2π of it.
_UNIT = np.float32(2.0**-32)
_TURN = np.float32(_UNIT * np.float32(2 * math.pi))


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """The four output words of each counter, both (4, N) of 32-bit words held in uint64; `key` is two 32-bit words."""
    low = np.uint64(_LOW)
    first, second, third, fourth = counter
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first = (product_1 >> _SHIFT) ^ second ^ np.uint64(key_0)
        third = (product_0 >> _SHIFT) ^ fourth ^ np.uint64(key_1)
        second, fourth = product_1 & low, product_0 & low
        key_0, key_1 = (key_0 + _WEYL[0]) & _LOW, (key_1 + _WEYL[1]) & _LOW
    return np.stack([first, second, third, fourth])


def box_muller(radius: NDArray[np.uint64], angle: NDArray[np.uint64]) -> NDArray[np.float32]:
    """One standard normal number for each two words: the sine half of curand's Box-Muller transform.

    The words become single-precision numbers in (0, 1] and (0, 2π], as on the card. What follows is exact to the last
    bit or two here; a card uses its fast sine, so the two differ by some 10⁻⁶.
    """
    # A fused multiply-add rounds once: double precision holds the exact sum, which is then rounded to single.
    u = _fused(radius, _UNIT)
    v = _fused(angle, _TURN)
    return (np.sqrt(-2 * np.log(u.astype(np.float64))) * np.sin(v.astype(np.float64))).astype(np.float32)


def _fused(words: NDArray[np.uint64], factor: np.float32) -> NDArray[np.float32]:
    single = words.astype(np.float32).astype(np.float64)
    return (single * float(factor) + float(factor) / 2).astype(np.float32)


class PhiloxStream:
    """What ``torch.Generator("cuda").manual_seed(seed)`` would give, one call of `randn` after the other."""

    def __init__(self, seed: int) -> None:
        self._key = (seed & _LOW, (seed >> 32) & _LOW)
        self._calls = 0

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next standard normal numbers, float32 of `shape`."""
        count = math.prod(shape)
        counter = np.zeros((4, count), np.uint64)
        counter[0] = self._calls
        counter[2] = np.arange(count, dtype=np.uint64)
        self._calls += 1
        words = philox4x32(counter, self._key)
        return box_muller(words[0], words[1]).reshape(shape)
