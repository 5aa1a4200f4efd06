"""Attention by xformers' memory-efficient kernels, an optional library (`python3 launch.py --xformers`).

Its import succeeds on a torch that its kernels were not built for, with only a warning; running one is the test.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from webui.hardware.attention import sdpa
from webui.hardware.attention.backend import AttentionFunction, Backend


def _load() -> AttentionFunction:
    operators: Any = importlib.import_module("xformers.ops")  # not installed everywhere, so unknown to the type checker

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `AttentionFunction`; xformers wants (B, N, H, d), and masks whose rows begin at multiples of 16 bytes.

        The 77 places of a prompt's chunk do not, so masked calls are torch's.
        """
        if mask is not None:
            return sdpa.attend(query, key, value, mask)
        swapped = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return operators.memory_efficient_attention(*swapped).transpose(1, 2)

    return attend


XFORMERS = Backend("xformers", _load)
