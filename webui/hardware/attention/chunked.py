"""Attention in plain torch, a block of queries and keys at a time: works everywhere, with memory that stays bounded.

The running softmax over blocks of keys is that of Rabe and Staats, "Self-attention does not need O(n²) memory",
arXiv 2112.05682, section 2: keep each row's greatest score so far, and rescale what was summed when it grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from webui.hardware.attention.backend import AttentionFunction, Backend

# 512 × 2048 scores in float32 are 4 MiB for each head; with many heads fewer rows are taken at a time.
QUERY_BLOCK = 512
KEY_BLOCK = 2048
SCORE_BYTES = 32 * 2**20


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `AttentionFunction`; sums are float32 (float64 stays), whatever the inputs are."""
    length, keys = query.shape[2], key.shape[2]
    query = query * query.shape[-1] ** -0.5  # before the product, which could overflow float16
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], length, keys)
    a_row = 4 * query.shape[0] * query.shape[1] * min(keys, KEY_BLOCK)
    block = max(16, min(QUERY_BLOCK, SCORE_BYTES // a_row))
    blocks: list[Tensor] = []
    for start in range(0, length, block):
        rows = slice(start, start + block)
        rows_mask = None if mask is None else mask[..., rows, :]
        by = attend_rows if keys <= KEY_BLOCK else _attend_rows_in_blocks
        blocks.append(by(query[:, :, rows], key, value, rows_mask))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores if mask is None else scores + mask


def attend_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """See `AttentionFunction`, for a scaled `query`: all scores at once, in float32."""
    return _scores(query, key, mask).softmax(-1).to(value.dtype) @ value


def _attend_rows_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    shape = query.shape[:-1]
    # The lowest finite number and not -inf, so that a row whose first blocks are all masked has no inf - inf.
    top = torch.full((*shape, 1), torch.finfo(precise).min, dtype=precise, device=query.device)
    total = torch.zeros_like(top)
    summed = torch.zeros((*shape, value.shape[-1]), dtype=precise, device=query.device)
    for start in range(0, key.shape[2], KEY_BLOCK):
        columns = slice(start, start + KEY_BLOCK)
        scores = _scores(query, key[:, :, columns], None if mask is None else mask[..., columns])
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = (scores - new_top).exp()
        rescale = (top - new_top).exp()
        total = total * rescale + weights.sum(-1, keepdim=True)
        summed = summed * rescale + (weights.to(value.dtype) @ value[:, :, columns]).to(precise)
        top = new_top
    return (summed / total).to(query.dtype)


def _load() -> AttentionFunction:
    return attend


CHUNKED = Backend("chunked", _load)
