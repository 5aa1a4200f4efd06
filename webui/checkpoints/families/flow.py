"""Flow-matching transformers in one file: Stable Diffusion 3, FLUX.1 and Chroma, run by diffusers' own pipelines.

What a file of theirs carries is the transformer, and sometimes an autoencoder and text encoders; it has no
configuration. Widths and depths are read from shapes, the rest is each model's to know: facts of the published models,
as their diffusers folders state them. Names of weights are in `webui.checkpoints.flow_names`. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from webui.checkpoints.families import markers
from webui.checkpoints.families.sizes import Part
from webui.checkpoints.flow_names import Names, chroma_names, flux_names, sd3_names
from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel

TextName = Literal["clip_l", "clip_g", "t5"]

# What the transformer's names begin with: in a whole checkpoint, in a file of its own.
PREFIXES = ("model.diffusion_model.", "")
# A head's width in Stable Diffusion 3.0, where no norm of queries shows it.
_SD3_HEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowModel:
    """One architecture: how its files are recognised, configured and named, and what belongs to it.

    `marks` are weights that every file has. `sizes` gives keyword arguments of diffusers' class `transformer`,
    `scheduler` those of its flow-matching scheduler. `texts` are the text encoders by the names that the pipeline
    gives them; those in `optional` may be missing. `vae` is what the autoencoder's shapes do not tell, `vae_files` how
    the names of its files begin, and `packed` how many latent pixels the transformer takes as one.
    """

    title: str
    pipeline: str
    transformer: str
    marks: tuple[str, ...]
    sizes: Callable[[Part], dict[str, Any]]
    names: Callable[[Mapping[str, Any]], Names]
    scheduler: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    texts: Mapping[str, TextName]
    optional: frozenset[TextName]
    vae: Mapping[str, Any]
    vae_files: tuple[str, ...]
    packed: int

    def recognises(self, header: Header) -> bool:
        """Whether the file holds this model's transformer."""
        return any(all(prefix + mark in header.tensors for mark in self.marks) for prefix in PREFIXES)

    def config(self, header: Header) -> dict[str, Any]:
        """Keyword arguments of the transformer's class; raises `UnsupportedModel` where a weight is missing."""
        part = Part(header, *PREFIXES, what="the transformer")
        return {**self.sizes(part), **markers.own_config(header).get("transformer", {})}


def flow_model(header: Header) -> FlowModel | None:
    """Which of the models the file with `header` holds, None where it is none of them."""
    return next((model for model in FLOW_MODELS if model.recognises(header)), None)


def _sd3_sizes(part: Part) -> dict[str, Any]:
    width, channels, patch, _ = part.shape("x_embedder.proj.weight", 4)
    normed = "joint_blocks.0.x_block.attn.ln_q.weight"
    head = part.shape(normed, 1)[0] if normed in part else _SD3_HEAD
    return {
        "sample_size": 128,  # of no effect: positions come with the weights
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": part.shape("final_layer.linear.weight", 2)[0] // patch**2,
        "num_layers": len(part.numbers(r"joint_blocks\.(\d+)\.")),
        "attention_head_dim": head,
        "num_attention_heads": _heads(part, width, head),
        "joint_attention_dim": part.shape("context_embedder.weight", 2)[1],
        "caption_projection_dim": width,
        "pooled_projection_dim": part.shape("y_embedder.mlp.0.weight", 2)[1],
        "pos_embed_max_size": math.isqrt(part.shape("pos_embed", 3)[1]),
        "dual_attention_layers": tuple(part.numbers(r"joint_blocks\.(\d+)\.x_block\.attn2\.")),
        "qk_norm": "rms_norm" if normed in part else None,
    }


def _flux_like_sizes(part: Part) -> dict[str, Any]:
    """What FLUX.1 and Chroma have in common; the first sixteenth pair of positions in a head is for time."""
    width, channels = part.shape("img_in.weight", 2)
    made = part.shape("final_layer.linear.weight", 2)[0]
    if made != channels:
        raise UnsupportedModel(
            f"{part.name} takes {channels} channels and makes {made}: it edits pictures, and Atelier runs such models"
            " only where they make pictures from words alone."
        )
    head = part.shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": len(part.numbers(r"double_blocks\.(\d+)\.")),
        "num_single_layers": len(part.numbers(r"single_blocks\.(\d+)\.")),
        "attention_head_dim": head,
        "num_attention_heads": _heads(part, width, head),
        "joint_attention_dim": part.shape("txt_in.weight", 2)[1],
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }


def _flux_sizes(part: Part) -> dict[str, Any]:
    return {
        **_flux_like_sizes(part),
        "pooled_projection_dim": part.shape("vector_in.in_layer.weight", 2)[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in part,
    }


def _chroma_sizes(part: Part) -> dict[str, Any]:
    hidden, channels = part.shape("distilled_guidance_layer.in_proj.weight", 2)
    return {
        **_flux_like_sizes(part),
        "approximator_num_channels": channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": len(part.numbers(r"distilled_guidance_layer\.layers\.(\d+)\.")),
    }


def _heads(part: Part, width: int, head: int) -> int:
    if width % head:
        raise UnsupportedModel(f"{part.name} is {width} wide, which its heads of {head} do not divide; it is damaged.")
    return width // head


# Noise levels shift with the number of pixels in FLUX.1 dev, and not at all in schnell, which takes no guidance.
_DYNAMIC = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
_FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159}

SD3 = FlowModel(
    title="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    transformer="SD3Transformer2DModel",
    marks=("joint_blocks.0.x_block.attn.qkv.weight",),
    sizes=_sd3_sizes,
    names=sd3_names,
    scheduler=lambda config: {"shift": 3.0},  # noqa: ARG005  # one schedule for all sizes
    texts={"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"},
    optional=frozenset({"t5"}),
    vae={"scaling_factor": 1.5305, "shift_factor": 0.0609},
    vae_files=("sd3",),
    packed=1,
)
CHROMA = FlowModel(
    title="Chroma",
    pipeline="ChromaPipeline",
    transformer="ChromaTransformer2DModel",
    marks=("distilled_guidance_layer.in_proj.weight",),
    sizes=_chroma_sizes,
    names=chroma_names,
    scheduler=lambda config: _DYNAMIC,  # noqa: ARG005  # one schedule for all sizes
    texts={"text_encoder": "t5"},
    optional=frozenset(),
    vae=_FLUX_VAE,
    vae_files=("ae", "flux"),
    packed=4,
)
FLUX = FlowModel(
    title="FLUX.1",
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    marks=("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"),
    sizes=_flux_sizes,
    names=flux_names,
    scheduler=lambda config: _DYNAMIC if config["guidance_embeds"] else {"shift": 1.0},
    texts={"text_encoder": "clip_l", "text_encoder_2": "t5"},
    optional=frozenset(),
    vae=_FLUX_VAE,
    vae_files=("ae", "flux"),
    packed=4,
)
FLOW_MODELS: tuple[FlowModel, ...] = (SD3, CHROMA, FLUX)
