"""Attention by torch's own fused kernels, which torch chooses among for the device and dtype."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from webui.hardware.attention.backend import AttentionFunction, Backend


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `AttentionFunction`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _load() -> AttentionFunction:
    return attend


SDPA = Backend("sdpa", _load)
