"""Attention by torch's own fused kernels: as torch chooses among them, or one by its name.

Flash and cuDNN need half precision, flash a head of at most 256 channels, and neither takes a mask of scores: a named
kernel leaves a masked call to torch's choice.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from webui.hardware.attention.backend import AttentionFunction, Backend


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `AttentionFunction`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _load() -> AttentionFunction:
    return attend


def _load_only(kernel: str) -> AttentionFunction:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    only = SDPBackend.__members__[kernel]

    def attend_by_name(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `AttentionFunction`; without a mask by `only`."""
        if mask is not None:
            return attend(query, key, value, mask)
        with sdpa_kernel(only):
            return attend(query, key, value)

    return attend_by_name


SDPA = Backend("sdpa", _load)
SDPA_FLASH = Backend("sdpa-flash", lambda: _load_only("FLASH_ATTENTION"), "on a GPU")
SDPA_CUDNN = Backend("sdpa-cudnn", lambda: _load_only("CUDNN_ATTENTION"), "on a GPU")
SDPA_EFFICIENT = Backend("sdpa-efficient", lambda: _load_only("EFFICIENT_ATTENTION"), "on a GPU")
SDPA_MATH = Backend("sdpa-math", lambda: _load_only("MATH"), "by name")
