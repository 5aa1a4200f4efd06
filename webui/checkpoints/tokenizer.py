"""CLIP's byte-pair tokenizer, from the vocabulary that open_clip's wheel carries: nothing is downloaded.

Gives plain token ids. Start, end and padding tokens and the cutting into chunks of 75 belong to the engine, which
weighs them; the ids to use are the properties here.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer


@functools.cache
def _byte_pairs() -> SimpleTokenizer:
    """The vocabulary, read once a process: it takes a quarter of a second and never changes."""
    torchvision_operators.declare()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class ClipTokenizer:
    """Text → CLIP token ids. Stateless apart from the shared vocabulary; any thread may call it."""

    start_token = 49406
    end_token = 49407
    length = 77  # positions of the text encoder, start and end tokens included

    def __init__(self, *, pad_token: int = end_token) -> None:
        self.pad_token = pad_token  # Stable Diffusion 1 pads with the end token

    def encode(self, text: str) -> list[int]:
        """The ids of `text` in order, lower-cased and cleaned as CLIP does; no special tokens, any length."""
        return _byte_pairs().encode(text)
