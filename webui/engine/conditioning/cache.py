"""Remembers what the last texts were encoded to, because artists change one thing at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from webui.core.requests import Emphasis
from webui.engine.conditioning.encode import Encoded


class EncodingKey(NamedTuple):
    """All that decides what a text is encoded to.

    `weights` tells the checkpoint's weights from any others', `patches` what changes them for the time being (LoRAs on
    the text encoders), and `embeddings` holds name and time of those that the text uses.
    """

    text: str
    weights: str
    patches: Hashable
    clip_skip: int
    emphasis: Emphasis
    embeddings: tuple[tuple[str, int], ...]


class PromptCache:
    """Texts as encoded; the least recently used beyond `size` is forgotten. Owned by the manager; one thread at a time.

    An entry takes 0.25 MB a chunk for Stable Diffusion 1, 0.6 MB for SDXL. Alternation over all steps may need one
    entry a step.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._known: OrderedDict[EncodingKey, Encoded] = OrderedDict()

    def get(self, key: EncodingKey, encode: Callable[[], Encoded]) -> Encoded:
        """What `key` stands for, made by `encode` if it is new."""
        encoded = self._known.get(key)
        if encoded is None:
            encoded = encode()
            self._known[key] = encoded
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return encoded
