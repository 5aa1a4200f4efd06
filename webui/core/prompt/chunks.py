"""Tokens → chunks of at most 75, which is what a CLIP text encoder reads at once. Pure: no tensors, no text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from webui.core.prompt.emphasis import Section

CHUNK = 75
COMMA_REACH = 20


class Tokenizer(Protocol):
    """What chunking needs of `webui.checkpoints.tokenizer.ClipTokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without start, end or padding."""
        ...


class Run(NamedTuple):
    """Tokens of one weight. Those that stand for the embedding called `embedding` are never torn apart."""

    tokens: Sequence[int]
    weight: float
    embedding: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 75 tokens and as many weights; `embeddings` says which embedding begins at which of them."""

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    embeddings: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True)
class _Filling:
    """The chunk that is being filled; `comma` is where the phrase after its last comma begins, 0 without one."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    embeddings: list[tuple[int, str]] = field(default_factory=list)
    comma: int = 0

    def finished(self, end: int) -> Chunk:
        """The first `end` tokens."""
        return Chunk(
            tuple(self.tokens[:end]),
            tuple(self.weights[:end]),
            tuple(placed for placed in self.embeddings if placed[0] < end),
        )

    def rest(self, start: int) -> _Filling:
        """What comes after them, as the beginning of another chunk."""
        embeddings = [(at - start, name) for at, name in self.embeddings if at >= start]
        return _Filling(self.tokens[start:], self.weights[start:], embeddings)


def make_chunks(sections: Sequence[Sequence[Run]], comma: int) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one; each section but the first begins a new one, even after an empty one.

    A1111's rules. A chunk that is full ends after its last `comma` token if that lies within its last `COMMA_REACH`
    tokens, so that a phrase is seldom torn in two, unless what follows is a comma itself. An embedding, of at most 75
    tokens, that does not fit any more goes into the next chunk.
    """
    chunks: list[Chunk] = []
    for number, section in enumerate(sections):
        filling = _Filling()
        for run in section:
            for token in (run.tokens[0],) if run.embedding else run.tokens:
                filling = _with_room(filling, len(run.tokens) if run.embedding else 1, token == comma, chunks)
                if run.embedding:
                    filling.embeddings.append((len(filling.tokens), run.embedding))
                    filling.tokens += run.tokens
                    filling.weights += [run.weight] * len(run.tokens)
                    continue
                filling.tokens.append(token)
                filling.weights.append(run.weight)
                if token == comma:
                    filling.comma = len(filling.tokens)
        last = number == len(sections) - 1
        if filling.tokens or not last or not chunks:
            chunks.append(filling.finished(len(filling.tokens)))
    return tuple(chunks)


def _with_room(filling: _Filling, wanted: int, is_comma: bool, chunks: list[Chunk]) -> _Filling:
    """A chunk with room for `wanted` more tokens: `filling`, or a new one after `filling` was added to `chunks`."""
    if len(filling.tokens) == CHUNK:
        # The comma itself is one of the tokens that are reached over.
        near = filling.comma > 0 and CHUNK - (filling.comma - 1) <= COMMA_REACH
        end = filling.comma if near and not is_comma else CHUNK
        chunks.append(filling.finished(end))
        filling = filling.rest(end)
    if len(filling.tokens) + wanted > CHUNK:
        chunks.append(filling.finished(len(filling.tokens)))
        filling = _Filling()
    return filling


def plain_runs(sections: Sequence[Section], tokenizer: Tokenizer) -> list[list[Run]]:
    """The runs of sections that use no embeddings; each fragment is read by itself."""
    return [[Run(tokenizer.encode(fragment.text), fragment.weight) for fragment in section] for section in sections]


def comma_token(tokenizer: Tokenizer) -> int:
    """The id that a comma has by itself."""
    return tokenizer.encode(",")[0]
