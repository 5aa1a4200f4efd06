"""Remembers what the last prompts were encoded to, because artists change one thing at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor


class PromptCache:
    """The least recently used of `size` pairs of prompts is forgotten. Owned by the manager; one thread at a time."""

    def __init__(self, size: int = 16) -> None:
        self._size = size
        self._known: OrderedDict[tuple[str, str, str], tuple[Tensor, Tensor]] = OrderedDict()

    def get(
        self, checkpoint: str, prompt: str, negative: str, encode: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The pair for these texts under `checkpoint` (whatever tells two sets of weights apart), encoded if new.

        The two are kept together because the longer of them decides the length of both.
        """
        key = (checkpoint, prompt, negative)
        pair = self._known.get(key)
        if pair is None:
            pair = encode()
            self._known[key] = pair
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return pair
