"""Attention in plain torch, as many rows of scores at a time as a fixed amount of memory holds: exact, and simple.

Beside `chunked`, which cuts the keys as well, it makes each row's scores whole: fewer and larger products where there
are few keys, as in cross attention, and more memory where there are many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from webui.hardware.attention.backend import AttentionFunction, Backend
from webui.hardware.attention.chunked import attend_rows

SCORE_BYTES = 128 * 2**20
_BYTES_PER_SCORE = 8  # a score in float32, and its share of the weights


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `AttentionFunction`; sums are float32 (float64 stays), whatever the inputs are."""
    batch, heads, length, size = query.shape
    keys = key.shape[2]
    rows = max(1, SCORE_BYTES // (_BYTES_PER_SCORE * batch * heads * keys))
    query = query * size**-0.5  # before the product, which could overflow float16
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], length, keys)
    result = torch.empty_like(query)
    for start in range(0, length, rows):
        taken = slice(start, start + rows)
        rows_mask = None if mask is None else mask[..., taken, :]
        result[:, :, taken] = attend_rows(query[:, :, taken], key, value, rows_mask)
    return result


def _load() -> AttentionFunction:
    return attend


SPLIT = Backend("split", _load)
