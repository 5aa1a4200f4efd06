"""Perturbed-attention guidance: away from what the network makes when its middle no longer looks around.

Ahn et al. 2024 (arXiv 2403.17377). Which way the guidance goes is said in `webui.engine.guidance`; this is the
perturbed network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class _IdentityAttention:
    """A diffusers attention processor by which each place attends to itself alone."""

    def __call__(self, attn: Any, hidden_states: Tensor, **_: object) -> Tensor:
        """The values of `hidden_states` (B, N, C), through the layer's output projection."""
        return attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))


@contextlib.contextmanager
def perturbed(unet: Any) -> Iterator[None]:
    """Within the block, self attention in the middle of `unet` (a diffusers UNet2DConditionModel) is the identity."""
    layers = [block.attn1 for attention in unet.mid_block.attentions for block in attention.transformer_blocks]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(_IdentityAttention())
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.set_processor(own)
