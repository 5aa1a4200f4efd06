"""How large networks are, read from the shapes of their weights in the original layout.

A file in that layout carries no configuration, but the names and shapes of its weights determine nearly all of it: so
a model of any width and depth loads. What shapes cannot tell (attention heads, groups of a norm, activation) is the
family's to know. The results are keyword arguments of diffusers' and transformers' classes. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel

# CLIP's vocabulary in every Stable Diffusion; the ids of its start and end tokens.
VOCABULARY = 49408
_SPECIAL_TOKENS = {"bos_token_id": 49406, "eos_token_id": 49407}
# CLIP's text models of all published sizes have heads this wide.
CLIP_HEAD = 64


class Part:
    """The weights of one module in `header`: those below the first of `prefixes` that any name begins with."""

    def __init__(self, header: Header, *prefixes: str, what: str) -> None:
        self.name = header.path.name
        self.what = what
        prefix = next((prefix for prefix in prefixes if header.has(prefix)), None)
        if prefix is None:
            raise UnsupportedModel(f"{self.name} is a model without {what}; use a complete checkpoint.")
        self._shapes = {
            key[len(prefix) :]: tensor.shape for key, tensor in header.tensors.items() if key.startswith(prefix)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a weight that has to be there; raises `UnsupportedModel` when it is not, or is another kind."""
        shape = self._shapes.get(key)
        if shape is None or len(shape) != dimensions or not all(shape):
            found = "lacks it" if shape is None else f"has it in the size {shape}"
            raise UnsupportedModel(
                f"{self.name} is not complete: {self.what} needs the weight {key!r}, and the file {found}."
            )
        return shape

    def dimensions(self, key: str) -> int:
        """How many a weight has, 0 where it is not there."""
        return len(self._shapes.get(key, ()))

    def numbers(self, pattern: str) -> list[int]:
        """The numbers that the group of `pattern` has in the names that it matches at their start, ascending."""
        matches = (re.match(pattern, key) for key in self._shapes)
        return sorted({int(match[1]) for match in matches if match})


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer of a level: the channels that it gives, and how many transformers follow it."""

    channels: int
    depth: int


def unet_sizes(unet: Part) -> dict[str, Any]:
    """The sizes of the UNet whose weights are `unet`, without heads and norms."""
    levels = _levels(unet, "input_blocks", r"0\.op\.")
    up = _levels(unet, "output_blocks", r"[12]\.conv\.")
    down_depths = [[block.depth for block in level] for level in levels]
    up_depths = [[block.depth for block in level] for level in up]
    down_types = ["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in down_depths]
    layers = [len(level) for level in levels]
    conv_in = unet.shape("input_blocks.0.0.weight", 4)
    return {
        "in_channels": conv_in[1],
        "out_channels": unet.shape("out.2.weight", 4)[0],
        "block_out_channels": [level[-1].channels for level in levels],
        "down_block_types": down_types,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down_types)],
        "layers_per_block": one_if_equal(layers),
        **_middle(unet),
        **_depths(unet, down_depths, up_depths),
        **_cross_attention(unet),
        **_embeddings(unet),
    }


def _levels(unet: Part, blocks: str, end: str) -> list[list[_Block]]:
    """The layers of each level in the order of `blocks`; a weight that matches `end` closes a level."""
    ends = unet.numbers(rf"{blocks}\.(\d+)\.{end}")
    levels: list[list[_Block]] = [[]]
    for number in unet.numbers(rf"{blocks}\.(\d+)\."):
        if f"{blocks}.{number}.0.out_layers.3.weight" in unet:
            channels = unet.shape(f"{blocks}.{number}.0.out_layers.3.weight", 4)[0]
            depth = len(unet.numbers(rf"{blocks}\.{number}\.1\.transformer_blocks\.(\d+)\."))
            levels[-1].append(_Block(channels, depth))
        if number in ends:
            levels.append([])
    if not all(levels):
        raise UnsupportedModel(f"{unet.name} is not complete: {unet.what} has a level without layers in {blocks}.")
    return levels


def one_if_equal(values: list[Any]) -> Any:
    """The value that all of `values` have, or the list of them: diffusers takes either."""
    return values[0] if all(value == values[0] for value in values) else values


def _middle(unet: Part) -> dict[str, Any]:
    """SDXL's distilled children have no attention in the middle, or no middle at all."""
    if "middle_block.0.in_layers.0.weight" not in unet:
        return {"mid_block_type": None}
    if "middle_block.1.proj_in.weight" not in unet:
        return {"mid_block_type": "UNetMidBlock2D"}
    return {"mid_block_type": "UNetMidBlock2DCrossAttn"}


def _depths(unet: Part, down: list[list[int]], up: list[list[int]]) -> dict[str, Any]:
    """Transformers after each layer; diffusers wants one number a level, or all of them where they differ."""
    # Levels without attention count as one deep; the last also says how deep the middle is.
    middle = len(unet.numbers(r"middle_block\.1\.transformer_blocks\.(\d+)\.")) or 1
    levels = [[depth or 1 for depth in level] for level in down]
    if not any(down[-1]):
        levels[-1] = [middle] * len(levels[-1])
    mirrored = [[depth or 1 for depth in level] for level in up]
    if not any(up[0]):
        mirrored[0] = [middle] * len(mirrored[0])
    each = [one_if_equal(level) for level in levels]
    back = [one_if_equal(level) for level in mirrored]
    if all(isinstance(depth, int) for depth in each) and back == each[::-1]:
        return {"transformer_layers_per_block": one_if_equal(each)}
    return {"transformer_layers_per_block": levels, "reverse_transformer_layers_per_block": mirrored}


def _cross_attention(unet: Part) -> dict[str, Any]:
    places = [f"input_blocks.{number}.1" for number in unet.numbers(r"input_blocks\.(\d+)\.1\.proj_in\.")]
    if not places:
        raise UnsupportedModel(f"{unet.name} is no Stable Diffusion: {unet.what} has no attention to a text.")
    return {
        "cross_attention_dim": unet.shape(f"{places[0]}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "use_linear_projection": unet.dimensions(f"{places[0]}.proj_in.weight") == 2,
    }


def _embeddings(unet: Part) -> dict[str, Any]:
    """What the UNet is told beside time and text."""
    told: dict[str, Any] = {}
    if "time_embed.cond_proj.weight" in unet:
        told["time_cond_proj_dim"] = unet.shape("time_embed.cond_proj.weight", 2)[1]
    if "label_emb.0.0.weight" in unet:
        width = unet.shape("label_emb.0.0.weight", 2)[1]
        return {**told, "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": width}
    if "label_emb.weight" in unet:
        return {**told, "num_class_embeds": unet.shape("label_emb.weight", 2)[0]}
    return told


def vae_sizes(vae: Part) -> dict[str, Any]:
    """The sizes of the autoencoder whose weights are `vae`, without norms and scaling factor."""
    levels = vae.numbers(r"encoder\.down\.(\d+)\.block\.")
    widths = [vae.shape(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in levels]
    return {
        "in_channels": vae.shape("encoder.conv_in.weight", 4)[1],
        "out_channels": vae.shape("decoder.conv_out.weight", 4)[0],
        "latent_channels": vae.shape("decoder.conv_in.weight", 4)[1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": len(vae.numbers(r"encoder\.down\.0\.block\.(\d+)\.")),
    }


def clip_sizes(text: Part) -> dict[str, Any]:
    """The sizes of a text model with transformers' names, OpenAI's CLIP above all."""
    layers = text.numbers(r"encoder\.layers\.(\d+)\.")
    return _text_sizes(
        text,
        token="embeddings.token_embedding.weight",
        position="embeddings.position_embedding.weight",
        inner="encoder.layers.0.mlp.fc1.weight",
        layers=len(layers),
    )


def open_clip_sizes(text: Part) -> dict[str, Any]:
    """The sizes of a text tower with open_clip's names."""
    layers = text.numbers(r"transformer\.resblocks\.(\d+)\.")
    return _text_sizes(
        text,
        token="token_embedding.weight",
        position="positional_embedding",
        inner="transformer.resblocks.0.mlp.c_fc.weight",
        layers=len(layers),
    )


def _text_sizes(text: Part, *, token: str, position: str, inner: str, layers: int) -> dict[str, Any]:
    words, width = text.shape(token, 2)
    projected = width
    if "text_projection" in text:
        projected = text.shape("text_projection", 2)[1]
    elif "text_projection.weight" in text:
        projected = text.shape("text_projection.weight", 2)[0]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": text.shape(inner, 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // CLIP_HEAD, 1),
        "max_position_embeddings": text.shape(position, 2)[0],
        "projection_dim": projected,
        "layer_norm_eps": 1e-05,
    }


def checked_text(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`config` of a text encoder with the ids that the tokenizer uses; raises `UnsupportedModel` for other words."""
    words = config.get("vocab_size", VOCABULARY)
    if words != VOCABULARY:
        raise UnsupportedModel(
            f"{source} has a text encoder that knows {words} tokens; Atelier has CLIP's tokenizer with {VOCABULARY}."
        )
    return {**config, **_SPECIAL_TOKENS}
