"""Prompts → what the UNet attends to: chunks through the text encoder, emphasis, one length for both prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from webui.core.prompt import parse_prompt
from webui.engine.conditioning.chunks import Chunk, Tokenizer, make_chunks
from webui.engine.placement import weight_of

# Below this share of the deviation a mean is chance, and dividing by one would be noise.
LEAST_MEAN = 0.01


def emphasise(states: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """`states` (chunks, 77, width) times each token's weight, then scaled so that every chunk keeps its mean.

    A1111's emphasis mode "Original". A chunk whose weights are all 1 comes back bit for bit. Where a chunk's mean is
    nothing beside its deviation (`LEAST_MEAN`; CLIP's is a tenth of it), there is no mean to keep.
    """
    if all(weight == 1.0 for row in weights for weight in row):
        return states
    rows: list[Tensor] = []
    for state, row in zip(states, weights, strict=True):
        if all(weight == 1.0 for weight in row):
            rows.append(state)
            continue
        weighted = state * torch.tensor(row, dtype=state.dtype, device=state.device).unsqueeze(-1)
        kept, moved = state.mean(), weighted.mean()
        meant = torch.minimum(kept.abs(), moved.abs()) > LEAST_MEAN * state.std()
        rows.append(weighted * torch.where(meant, kept / moved, 1.0))
    return torch.stack(rows)


def encode_prompts(texts: Sequence[str], *, tokenizer: Tokenizer, text_encoder: Any) -> list[Tensor]:
    """One (1, 77 · chunks, width) float32 tensor a text, all with as many chunks as the longest.

    Shorter texts are filled up with chunks of nothing but padding. `text_encoder` is a transformers CLIPTextModel;
    its normalised last layer is used (clip skip 1). All texts pass through it in one batch.
    """
    chunked = [make_chunks(parse_prompt(text), tokenizer) for text in texts]
    count = max(len(chunks) for chunks in chunked)
    empty = make_chunks((), tokenizer)
    rows: list[Chunk] = [chunk for chunks in chunked for chunk in (*chunks, *empty * (count - len(chunks)))]
    ids = torch.tensor([row.tokens for row in rows], device=weight_of(text_encoder).device)
    states = text_encoder(input_ids=ids).last_hidden_state.float()
    states = emphasise(states, [row.weights for row in rows])
    return [part.reshape(1, -1, part.shape[-1]) for part in states.split(count)]
