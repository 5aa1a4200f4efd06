"""What an attention backend is: a name, and a function that can be had once its library is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


class AttentionFunction(Protocol):
    """softmax(Q Kᵀ / √d + mask) V, equation 1 of arXiv 1706.03762.

    `query` (B, H, N, d), `key` and `value` (B, H, M, d), all of one dtype and device; `mask` is added to the scores and
    broadcasts to (B, H, N, M), None means none. Gives (B, H, N, d) in the dtype of `query`.
    """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Runs the kernel; raises whatever it raises where it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to compute attention. `load` imports what it needs and raises ImportError where that is missing.

    `chosen` says where the selector may take it without being told to: a kernel that rounds more than others do, or
    that takes the memory of all scores at once, is only for those who name it. `slack` is how many times the usual
    tolerance its rounding may take.
    """

    name: str
    load: Callable[[], AttentionFunction]
    chosen: Literal["anywhere", "on a GPU", "by name"] = "anywhere"
    slack: float = 1.0
