"""Prompt fragments → rows of 77 token ids with a weight each. Pure: no tensors, no text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from webui.core.prompt import Fragment

CHUNK = 75
COMMA_REACH = 20


class Tokenizer(Protocol):
    """What chunking needs of `webui.checkpoints.tokenizer.ClipTokenizer`."""

    start_token: int
    end_token: int
    pad_token: int

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without start, end or padding."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row for the text encoder: start token, at most 75 tokens, end token, padding; 77 of each."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


def _cut(tokens: list[int], comma: int) -> list[int]:
    """Where each chunk ends, as indices into `tokens`.

    A chunk that is full ends after its last comma if that lies within its last `COMMA_REACH` tokens, as A1111 does, so
    that a phrase is seldom torn in two.
    """
    ends: list[int] = []
    start = 0
    while len(tokens) - start > CHUNK:
        end = start + CHUNK
        commas = [index for index in range(end - COMMA_REACH, end) if tokens[index] == comma]
        if commas and tokens[end] != comma:
            end = commas[-1] + 1
        ends.append(end)
        start = end
    return [*ends, len(tokens)]


def make_chunks(fragments: Sequence[Fragment], tokenizer: Tokenizer) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one; special tokens and padding have weight 1."""
    tokens: list[int] = []
    weights: list[float] = []
    for fragment in fragments:
        ids = tokenizer.encode(fragment.text)
        tokens += ids
        weights += [fragment.weight] * len(ids)
    chunks: list[Chunk] = []
    start = 0
    for end in _cut(tokens, tokenizer.encode(",")[0]):
        padding = CHUNK - (end - start)
        chunks.append(
            Chunk(
                (
                    tokenizer.start_token,
                    *tokens[start:end],
                    tokenizer.end_token,
                    *[tokenizer.pad_token] * padding,
                ),
                (1.0, *weights[start:end], *[1.0] * (padding + 1)),
            )
        )
        start = end
    return tuple(chunks)
