"""Puts the chosen attention function into diffusers' networks, for good or for the length of a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from webui.hardware import torchvision_operators
from webui.hardware.attention.backend import AttentionFunction
from webui.hardware.attention.selector import AttentionChoice

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


# Where `webui.hardware.attention.fusion` leaves a layer's weights of queries, keys and values in one piece.
FUSED = "weights_in_one_piece"


class ChosenAttention:
    """A diffusers attention processor: projections as the layer says, the product by `attend`.

    Covers the layers of UNet2DConditionModel and AutoencoderKL: self and cross attention on (B, N, C) or (B, C, h, w).
    """

    def __init__(self, attend: AttentionFunction) -> None:
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attends from `hidden_states` to `encoder_hidden_states`, or to itself; the shape stays.

        The parameters' names are diffusers'. `temb` is for layers with a spatial norm.
        """
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        picture = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if picture is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            source = attn.norm_encoder_hidden_states(source)
        query, key, value = (
            states.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for states in _projected(attn, hidden_states, source)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        mask = _mask(attn, attention_mask, source)
        result = self.attend(query, key, value, mask).transpose(1, 2).flatten(2)
        result = attn.to_out[1](attn.to_out[0](result))
        if picture is not None:
            result = result.transpose(1, 2).unflatten(2, picture)
        if attn.residual_connection:
            result = result + residual
        return result / attn.rescale_output_factor


def _projected(attn: Any, hidden_states: Tensor, source: Tensor) -> tuple[Tensor, ...]:
    fused: Tensor | None = getattr(attn, FUSED, None)
    if fused is not None and source is hidden_states:
        return F.linear(hidden_states, fused).chunk(3, dim=-1)
    return attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)


def _mask(attn: Any, mask: Tensor | None, source: Tensor) -> Tensor | None:
    if mask is None:
        return None
    batch, length, _ = source.shape
    return attn.prepare_attention_mask(mask, length, batch).unflatten(0, (batch, attn.heads))


def attention_layers(module: nn.Module) -> list[Attention]:
    """The layers of `module` whose product can be replaced."""
    torchvision_operators.declare()
    from diffusers.models.attention_processor import Attention

    return [layer for layer in module.modules() if isinstance(layer, Attention)]


def head_sizes(module: nn.Module) -> set[int]:
    """The numbers of channels a head in the layers of `module`: what a selector must try."""
    return {layer.inner_dim // layer.heads for layer in attention_layers(module)}


def apply_attention(module: nn.Module, choice: AttentionChoice) -> None:
    """Makes every attention layer of `module` use `choice` from now on."""
    processor: Any = ChosenAttention(choice.attend)
    for layer in attention_layers(module):
        layer.set_processor(processor)


@contextlib.contextmanager
def patched(module: nn.Module, choice: AttentionChoice) -> Iterator[None]:
    """Within the block, `module` attends by `choice`; afterwards each layer has its own processor again."""
    before = [(layer, layer.processor) for layer in attention_layers(module)]
    try:
        apply_attention(module, choice)
        yield
    finally:
        for layer, own in before:
            layer.set_processor(own)
