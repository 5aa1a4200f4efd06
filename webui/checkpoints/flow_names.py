"""Names of weights in flow-matching transformers and T5: the original layouts → diffusers' and transformers'.

The original of Stable Diffusion 3 is mmdit.py of https://github.com/Stability-AI/sd3-ref, FLUX.1's is model.py of
https://github.com/black-forest-labs/flux. Both keep query, key and value in one matrix, FLUX.1's single blocks also the
first layer of what follows; each is cut into the rows of the weights that it stands for. Where diffusers has scale
before shift, the originals have shift before scale. Pure: no torch, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """`table` maps a module or weight to the ones whose rows it has; the halves of those in `swapped` change places."""

    table: Mapping[str, tuple[str, ...]]
    swapped: frozenset[str]

    def own(self, key: str) -> tuple[tuple[str, ...], bool]:
        """The weights whose rows `key` has one after another, and whether its halves change places.

        A key that is not known keeps its name, to be refused by it.
        """
        module, _, parameter = key.rpartition(".")
        if key in self.table:
            return self.table[key], False
        if module not in self.table:
            return (key,), False
        parameter = "weight" if parameter == "scale" else parameter
        targets = self.table[module]
        return tuple(f"{target}.{parameter}" for target in targets), targets[0] in self.swapped


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

_SD3_ENDS = {
    "pos_embed": ("pos_embed.pos_embed",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SD3_BLOCK = {
    "x_block.attn.qkv": _QKV,
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": _ADDED_QKV,
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_FLUX_ENDS = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_FLUX_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_attn.qkv": _ADDED_QKV,
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_FLUX_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}


def sd3_names(config: Mapping[str, Any]) -> Names:
    """Stable Diffusion 3's; of its last block, the text's side ends in a norm alone."""
    layers = config["num_layers"]
    table = {**_SD3_ENDS, **_blocks("joint_blocks", "transformer_blocks", layers, _SD3_BLOCK)}
    last = f"transformer_blocks.{layers - 1}.norm1_context.linear"
    return Names(table=table, swapped=frozenset({"norm_out.linear", last}))


def flux_names(config: Mapping[str, Any]) -> Names:
    """FLUX.1's."""
    table = {
        **_FLUX_ENDS,
        **_blocks("double_blocks", "transformer_blocks", config["num_layers"], _FLUX_DOUBLE),
        **_blocks("single_blocks", "single_transformer_blocks", config["num_single_layers"], _FLUX_SINGLE),
    }
    return Names(table=table, swapped=frozenset({"norm_out.linear"}))


def chroma_names(config: Mapping[str, Any]) -> Names:
    """Chroma's: FLUX.1's without modulation, which one small network makes for all blocks."""
    guidance = "distilled_guidance_layer"
    table = {**flux_names(config).table, **{f"{guidance}.{end}": (f"{guidance}.{end}",) for end in _CHROMA_ENDS}}
    for number in range(config["approximator_layers"]):
        layer = f"{guidance}.layers.{number}"
        table[f"{layer}.in_layer"] = (f"{layer}.linear_1",)
        table[f"{layer}.out_layer"] = (f"{layer}.linear_2",)
        table[f"{guidance}.norms.{number}"] = (f"{guidance}.norms.{number}",)
    return Names(table=table, swapped=frozenset())


_CHROMA_ENDS = ("in_proj", "out_proj")


def _blocks(original: str, own: str, count: int, inner: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{original}.{number}.{module}": tuple(f"{own}.{number}.{target}" for target in targets)
        for number in range(count)
        for module, targets in inner.items()
    }


# llama.cpp's names for T5's encoder, in which GGUF files have it.
_GGUF_T5 = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_GGUF_T5_ENDS = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}


def t5_name(key: str) -> str:
    """The name in transformers of a weight of T5's encoder, which may have llama.cpp's; others stay as they are."""
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", key)
    if match and match[2] in _GGUF_T5:
        return f"encoder.block.{match[1]}.{_GGUF_T5[match[2]]}.weight"
    return _GGUF_T5_ENDS.get(key, key)
