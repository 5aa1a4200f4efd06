"""Attention by the flash-attn package (Dao 2023, arXiv 2307.08691), an optional library: half precision, no masks."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from webui.hardware.attention import sdpa
from webui.hardware.attention.backend import AttentionFunction, Backend


def _load() -> AttentionFunction:
    library: Any = importlib.import_module("flash_attn")  # not installed everywhere, so unknown to the type checker

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `AttentionFunction`; the library wants (B, N, H, d). Masked calls are torch's."""
        if mask is not None:
            return sdpa.attend(query, key, value, mask)
        swapped = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return library.flash_attn_func(*swapped).transpose(1, 2)

    return attend


FLASH_ATTN = Backend("flash-attn", _load, "on a GPU")
