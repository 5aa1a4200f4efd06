"""A text → what the text encoders make of it: tokens and embeddings in chunks, the family's layer, emphasis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from webui.checkpoints.loaded import TextEncoder
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.errors import InvalidRequest
from webui.core.prompt.chunks import CHUNK, Chunk, Run, comma_token, make_chunks
from webui.core.prompt.emphasis import Fragment, Section, parse_emphasis
from webui.core.requests import Emphasis
from webui.engine.placement import placed

# Below this share of the deviation a mean is chance, and dividing by one would be noise.
LEAST_MEAN = 0.01


class Embedding(Protocol):
    """A textual inversion as `webui.checkpoints.embeddings` gives it: a word that stands for learnt vectors."""

    @property
    def name(self) -> str:
        """The word."""
        ...

    @property
    def modified_ns(self) -> int:
        """Tells its file from another that took its name later."""
        ...

    def vectors_for(self, encoder: str, width: int) -> Tensor | None:
        """(n, `width`) for the text encoder of that name; None where there are none for it."""
        ...


class Embeddings(Protocol):
    """The embeddings that a prompt may name, as they were at one moment."""

    def split(self, text: str) -> Sequence[str | Embedding]:
        """`text` in pieces: the embeddings that it names, and what stands between them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """A text as the encoders give it: `states` (1, 77 · chunks, width) float32, encoders side by side.

    `pooled` (1, width) is the first chunk's, where the family takes one.
    """

    states: Tensor
    pooled: Tensor | None


@torch.inference_mode()
def encode_text(
    text: str,
    encoders: Sequence[TextEncoder],
    *,
    clip_skip: int = 1,
    emphasis: Emphasis = Emphasis.ORIGINAL,
    embeddings: Embeddings | None = None,
    device: torch.device,
) -> Encoded:
    """`text`, in which nothing changes from step to step any more, through `encoders` on `device`.

    The chunks of a text pass through an encoder together and without any other text, so that what comes out depends
    on the text alone. `clip_skip` n takes the n-th layer from the end where the family does not take an earlier one
    anyway, as SD 2 and SDXL do. Raises `InvalidRequest` for a clip skip beyond the encoder's layers and for an
    embedding that no chunk can hold.
    """
    sections: tuple[Section, ...] = ((Fragment(text, 1.0),),) if emphasis is Emphasis.NONE else parse_emphasis(text)
    used: dict[str, Embedding] = {}
    runs = [_runs(section, encoders, embeddings, used) for section in sections]
    chunks = make_chunks(runs, comma_token(encoders[0].tokenizer))
    states: list[Tensor] = []
    pooled: Tensor | None = None
    for encoder in encoders:
        with placed(encoder.module, device), _replaced(encoder, _vectors(chunks, encoder, used)):
            made, own = _encode(chunks, encoder, clip_skip)
        states.append(_weighted(made, chunks, emphasis))
        pooled = own if own is not None else pooled
    joined = torch.cat(states, dim=-1)
    return Encoded(states=joined.reshape(1, -1, joined.shape[-1]), pooled=pooled)


def emphasise(states: Tensor, weights: Sequence[Sequence[float]], *, keep_mean: bool = True) -> Tensor:
    """`states` (chunks, 77, width) times each token's weight; with `keep_mean` every chunk is scaled to keep its mean.

    A1111's emphasis modes "Original" and "No norm". A chunk whose weights are all 1 comes back bit for bit. Where a
    chunk's mean is nothing beside its deviation (`LEAST_MEAN`; CLIP's is a tenth of it), there is no mean to keep.
    """
    if all(weight == 1.0 for row in weights for weight in row):
        return states
    rows: list[Tensor] = []
    for state, row in zip(states, weights, strict=True):
        if all(weight == 1.0 for weight in row):
            rows.append(state)
            continue
        weighted = state * torch.tensor(row, dtype=state.dtype, device=state.device).unsqueeze(-1)
        if keep_mean:
            kept, moved = state.mean(), weighted.mean()
            meant = torch.minimum(kept.abs(), moved.abs()) > LEAST_MEAN * state.std()
            weighted = weighted * torch.where(meant, kept / moved, 1.0)
        rows.append(weighted)
    return torch.stack(rows)


def _runs(
    section: Section, encoders: Sequence[TextEncoder], embeddings: Embeddings | None, used: dict[str, Embedding]
) -> list[Run]:
    """The tokens of `section`, with embeddings as runs of token 0; those go into `used` by name."""
    tokenizer = encoders[0].tokenizer  # all families' encoders read CLIP's tokens
    runs: list[Run] = []
    for fragment in section:
        for piece in embeddings.split(fragment.text) if embeddings is not None else (fragment.text,):
            if isinstance(piece, str):
                runs.append(Run(tokenizer.encode(piece), fragment.weight))
                continue
            count = _length(piece, encoders)
            if count is None:  # learnt for other encoders than these: a word like any other
                runs.append(Run(tokenizer.encode(piece.name), fragment.weight))
                continue
            used[piece.name] = piece
            runs.append(Run((0,) * count, fragment.weight, piece.name))
    return runs


def _width(encoder: TextEncoder) -> int:
    return encoder.module.config.hidden_size


def _length(embedding: Embedding, encoders: Sequence[TextEncoder]) -> int | None:
    """How many tokens `embedding` stands for, None where it has not as many vectors for each of `encoders`."""
    lengths: set[int] = set()
    for encoder in encoders:
        vectors = embedding.vectors_for(encoder.name, _width(encoder))
        if vectors is None:
            return None
        lengths.add(vectors.shape[0])
    if len(lengths) > 1:
        return None
    length = lengths.pop()
    if length > CHUNK:
        raise InvalidRequest(
            f"The embedding {embedding.name} has {length} vectors, and a chunk has room for {CHUNK};"
            " take it out of the prompt."
        )
    return length


# ---- one encoder


def _encode(chunks: Sequence[Chunk], encoder: TextEncoder, clip_skip: int) -> tuple[Tensor, Tensor | None]:
    """The family's layer, (chunks, 77, width) float32, and where it takes one the pooled vector of the first chunk."""
    ids = torch.tensor([_row(chunk, encoder.pad_token) for chunk in chunks])
    layer = max(clip_skip, encoder.layer)
    output: Any = encoder.module(input_ids=ids.to(_token_embedding(encoder).weight.device), output_hidden_states=True)
    layers = len(output.hidden_states) - 1  # the first is what goes in
    if layer > layers:
        raise InvalidRequest(f"Clip skip is {layer}, and the text encoder has {layers} layers; choose less.")
    states = output.hidden_states[-layer]
    if encoder.final_norm:
        states = _text_model(encoder).final_layer_norm(states)
    return states.float(), output.text_embeds[:1].float() if encoder.pooled else None


def _row(chunk: Chunk, pad_token: int) -> list[int]:
    padding = [pad_token] * (CHUNK - len(chunk.tokens))
    return [ClipTokenizer.start_token, *chunk.tokens, ClipTokenizer.end_token, *padding]


def _weighted(states: Tensor, chunks: Sequence[Chunk], emphasis: Emphasis) -> Tensor:
    """`states` with the chunks' weights put to use as `emphasis` says; special tokens and padding have weight 1."""
    if emphasis in (Emphasis.IGNORE, Emphasis.NONE):
        return states
    weights = [(1.0, *chunk.weights, *[1.0] * (CHUNK + 1 - len(chunk.weights))) for chunk in chunks]
    return emphasise(states, weights, keep_mean=emphasis is Emphasis.ORIGINAL)


def _text_model(encoder: TextEncoder) -> Any:
    """The transformer, which a model with a projection wraps."""
    return getattr(encoder.module, "text_model", encoder.module)


def _token_embedding(encoder: TextEncoder) -> nn.Embedding:
    return _text_model(encoder).embeddings.token_embedding


def _vectors(
    chunks: Sequence[Chunk], encoder: TextEncoder, used: dict[str, Embedding]
) -> list[tuple[int, int, Tensor]]:
    """Where embeddings stand, as (chunk, position in its row, vectors)."""
    places: list[tuple[int, int, Tensor]] = []
    for number, chunk in enumerate(chunks):
        for position, name in chunk.embeddings:
            vectors = used[name].vectors_for(encoder.name, _width(encoder))
            if vectors is not None:
                places.append((number, position + 1, vectors))
    return places


@contextmanager
def _replaced(encoder: TextEncoder, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """Inside the block, `encoder` reads the vectors of `places` instead of the tokens there."""

    def replace(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        del module, arguments
        for row, position, vectors in places:
            output[row, position : position + vectors.shape[0]] = vectors.to(output)
        return output

    if not places:
        yield
        return
    handle = _token_embedding(encoder).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
