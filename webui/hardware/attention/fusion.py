"""The three projections of a self-attention layer as one product, where its weights lie still.

The weights of queries, keys and values are laid one behind the other, as views of one tensor: nothing is in memory
twice, whoever uses one of them alone finds it where it was, and a LoRA that is merged into one of them in place is in
the whole at once. Only moving them takes them apart; who moves them says so first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from webui.hardware.attention.processor import FUSED, attention_layers


@torch.no_grad()
def set_fused(network: nn.Module, *, wanted: bool) -> int:
    """Has the self-attention of `network` project in one product, or in three; returns how many layers do.

    Layers with biases, with packed weights (`webui.hardware.low_bits`) or of uneven widths stay as they are.
    """
    fused = 0
    with torch.inference_mode(mode=False):
        for layer in attention_layers(network):
            if wanted and _can_be_fused(layer):
                _fuse(layer)
                fused += 1
            elif hasattr(layer, FUSED):
                delattr(layer, FUSED)
    return fused


def _can_be_fused(layer: Any) -> bool:
    if layer.is_cross_attention or layer.to_k is None:
        return False
    projections = (layer.to_q, layer.to_k, layer.to_v)
    return all(type(each) is nn.Linear and each.bias is None for each in projections) and (
        len({each.weight.shape for each in projections}) == 1
    )


def _fuse(layer: Any) -> None:
    weights: list[Tensor] = [each.weight for each in (layer.to_q, layer.to_k, layer.to_v)]
    whole: Tensor | None = getattr(layer, FUSED, None)
    if whole is not None and [part.data_ptr() for part in whole.chunk(3)] == [each.data_ptr() for each in weights]:
        return
    whole = torch.cat([each.data for each in weights])
    for weight, part in zip(weights, whole.chunk(3), strict=True):
        weight.data = part
    setattr(layer, FUSED, whole)
