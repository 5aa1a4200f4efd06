"""Names of weights: Stable Diffusion's original layout (CompVis "LDM", OpenCLIP) ↔ diffusers' and transformers'.

A table maps *module paths* of one layout to the other's, for a UNet and an autoencoder of any number of levels; a key
is translated by its longest prefix in the table. Tables are one to one, so `inverse` turns one around: loading uses
them one way, exporting the other. Pure: no torch, no files.

The original layout numbers blocks in the order in which they run (openaimodel.py and model.py of
https://github.com/CompVis/stable-diffusion); diffusers groups them by resolution. Text models of Stable Diffusion 1
have transformers' names already; those of Stable Diffusion 2 and XL have open_clip's (transformer.py there), which
keeps query, key and value in one matrix (`PACKED`) and the projection the other way around (`TRANSPOSED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

# What a packed weight is called until its three parts have their own names.
PACKED = ".qkv_proj."
# open_clip multiplies from the left with this parameter; transformers has a linear layer, "text_projection.weight".
TRANSPOSED = "text_projection"

_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",  # LCM's guidance scale
    "label_emb": "class_embedding",  # the x4 upscaler's level of noise
    "label_emb.0.0": "add_embedding.linear_1",  # SDXL's sizes and pooled text
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE_ENDS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}

# Autoencoders that diffusers wrote before its version 0.17 name the attention's projections so.
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetShape:
    """What the names of a UNet's weights depend on: for each level, finest first, its layers and its attention."""

    layers: tuple[int, ...]
    attention: tuple[bool, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UNetShape:
        """Reads diffusers' ``down_block_types`` and ``layers_per_block`` (one number, or one a level)."""
        attention = tuple("CrossAttn" in kind for kind in config["down_block_types"])
        layers = config["layers_per_block"]
        return cls(layers=(layers,) * len(attention) if isinstance(layers, int) else tuple(layers), attention=attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """What the names of an autoencoder's weights depend on: its levels and the layers of each."""

    levels: int
    layers: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VaeShape:
        """Reads diffusers' ``down_block_types`` and ``layers_per_block``."""
        return cls(levels=len(config["down_block_types"]), layers=config["layers_per_block"])


def _nest(table: dict[str, str], inner: Mapping[str, str], ldm: str, diffusers: str) -> None:
    table.update({f"{ldm}.{old}": f"{diffusers}.{new}" for old, new in inner.items()})


def unet_table(shape: UNetShape) -> dict[str, str]:
    """Module paths of the original UNet (below `UNET_PREFIX`) → diffusers' `UNet2DConditionModel`."""
    table = dict(_UNET_ENDS)
    last = len(shape.layers) - 1
    block = 1
    for level, layers in enumerate(shape.layers):
        for layer in range(layers):
            _nest(table, _UNET_RESNET, f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            if shape.attention[level]:
                table[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
            block += 1
        if level != last:
            table[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            block += 1
    _nest(table, _UNET_RESNET, "middle_block.0", "mid_block.resnets.0")
    table["middle_block.1"] = "mid_block.attentions.0"
    _nest(table, _UNET_RESNET, "middle_block.2", "mid_block.resnets.1")
    block = 0
    for up, level in enumerate(reversed(range(len(shape.layers)))):
        for layer in range(shape.layers[level] + 1):
            _nest(table, _UNET_RESNET, f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{layer}")
            if shape.attention[level]:
                table[f"output_blocks.{block}.1"] = f"up_blocks.{up}.attentions.{layer}"
            if level != 0 and layer == shape.layers[level]:
                place = 2 if shape.attention[level] else 1
                table[f"output_blocks.{block}.{place}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            block += 1
    return table


def vae_table(shape: VaeShape) -> dict[str, str]:
    """Module paths of the original autoencoder (below `VAE_PREFIX`) → diffusers' `AutoencoderKL`."""
    table = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half in ("encoder", "decoder"):
        _nest(table, _VAE_ENDS, half, half)
        _nest(table, _VAE_RESNET, f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
        _nest(table, _VAE_ATTENTION, f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        _nest(table, _VAE_RESNET, f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")
    for level in range(shape.levels):
        for layer in range(shape.layers):
            _nest(
                table,
                _VAE_RESNET,
                f"encoder.down.{level}.block.{layer}",
                f"encoder.down_blocks.{level}.resnets.{layer}",
            )
        if level != shape.levels - 1:
            table[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        up = shape.levels - 1 - level  # the original numbers the decoder's levels by resolution, diffusers by order
        for layer in range(shape.layers + 1):
            _nest(table, _VAE_RESNET, f"decoder.up.{level}.block.{layer}", f"decoder.up_blocks.{up}.resnets.{layer}")
        if level != 0:
            table[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{up}.upsamplers.0.conv"
    return table


def text_table(*, inside: str = "") -> dict[str, str]:
    """Module paths of the CLIP text model (below `TEXT_PREFIX`) → transformers' text model, below `inside`.

    They are the same names. `inside` is as in `open_clip_table`.
    """
    table = {name: f"{inside}{name}" for name in ("embeddings", "encoder", "final_layer_norm")}
    return {**table, "text_projection": "text_projection"} if inside else table


_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.in_proj_weight": "self_attn.qkv_proj.weight",
    "attn.in_proj_bias": "self_attn.qkv_proj.bias",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def open_clip_table(layers: int, *, inside: str = "") -> dict[str, str]:
    """Module paths of open_clip's text tower with `layers` blocks → transformers' text model, below `inside`.

    `inside` is "text_model." for `CLIPTextModelWithProjection`, whose projection stands beside the model.
    """
    table = {
        "token_embedding": f"{inside}embeddings.token_embedding",
        "positional_embedding": f"{inside}embeddings.position_embedding.weight",
        "ln_final": f"{inside}final_layer_norm",
        "text_projection": "text_projection",
    }
    for layer in range(layers):
        _nest(table, _OPEN_CLIP_BLOCK, f"transformer.resblocks.{layer}", f"{inside}encoder.layers.{layer}")
    return table


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """The table the other way around."""
    return {new: old for old, new in table.items()}


def translate(key: str, table: Mapping[str, str]) -> str | None:
    """The name that `key` has in the other layout, None when the table does not know its module."""
    path = key
    while path:
        if path in table:
            return table[path] + key[len(path) :]
        path = path.rpartition(".")[0]
    return None


def is_vae_attention_weight(key: str) -> bool:
    """Whether a diffusers name is one of the weights that the original keeps as a 1×1 convolution (N, N, 1, 1)."""
    return ".attentions." in key and key.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))


def modern_vae_key(key: str) -> str:
    """The name that diffusers gives a weight today, where `key` may be from before its version 0.17."""
    path, _, leaf = key.rpartition(".")
    module, _, name = path.rpartition(".")
    if ".attentions." in key and name in _OLD_VAE_ATTENTION:
        return f"{module}.{_OLD_VAE_ATTENTION[name]}.{leaf}"
    return key
