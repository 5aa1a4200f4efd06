"""Attention by the sageattention package (Zhang et al. 2024, arXiv 2410.02367), an optional library.

It computes the scores from 8-bit queries and keys: faster than the exact kernels, and another picture in its details.
So it is for those who name it, and its trial allows for the rounding.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from webui.hardware.attention import sdpa
from webui.hardware.attention.backend import AttentionFunction, Backend


def _load() -> AttentionFunction:
    library: Any = importlib.import_module("sageattention")  # not installed everywhere: unknown to the type checker

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `AttentionFunction`. Masked calls are torch's."""
        if mask is not None:
            return sdpa.attend(query, key, value, mask)
        return library.sageattn(query, key, value, tensor_layout="HND", is_causal=False)

    return attend


SAGE = Backend("sage", _load, "by name", slack=4)
