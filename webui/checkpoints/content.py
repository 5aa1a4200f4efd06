"""What a model file is for, by the names and shapes of its weights: checkpoint, VAE, LoRA, embedding and so on.

Which family a checkpoint is of is decided by `webui.checkpoints.detect`; here is what all other files are, and for
which family they were made. Never looks at a file's name. Pure: no torch, no files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from webui.checkpoints.detect import FAMILIES
from webui.checkpoints.header import Header
from webui.checkpoints.lora.names import read_key
from webui.checkpoints.lora.scan import family_title

Kind = Literal[
    "checkpoint",
    "vae",
    "lora",
    "embedding",
    "controlnet",
    "upscaler",
    "face restorer",
    "mask model",
    "text encoder",
    "preview decoder",
    "unknown",
]

# What the text encoders' states that a UNet attends to are wide; 1280 is the second encoder of XL alone (the refiner).
_FAMILY_BY_CONTEXT = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
_FAMILY_BY_EMBEDDING = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
_NAME_BY_TITLE = {family.title: family.name for family in FAMILIES}

_MAX_EMBEDDING_TENSORS = 4


def _begins(*prefixes: str) -> Callable[[Header], bool]:
    return lambda header: any(header.has(prefix) for prefix in prefixes)


def _has_all(*prefixes: str) -> Callable[[Header], bool]:
    return lambda header: all(header.has(prefix) for prefix in prefixes)


def _restores_faces(header: Header) -> bool:
    """Whether there is GFPGAN's style network (Wang et al. 2021, arXiv 2101.04061), or CodeFormer's prediction of codes
    (Zhou et al. 2022, arXiv 2206.11253).
    """
    marks = ("stylegan_decoder.style_mlp.1.weight", "idx_pred_layer.1.weight")
    return any(name.endswith(marks) for name in header.tensors)


def _is_lora(header: Header) -> bool:
    """Every LoRA has pairs or factors; alpha and plain weights alone make none."""
    parts = [read_key(key) for key in header.tensors]
    names = {part.name for part in parts if part is not None}
    return len(names - {"alpha", "outputs"}) > 0 and sum(part is not None for part in parts) * 2 > len(parts)


def _is_ia3(header: Header) -> bool:
    return any(key.endswith(".on_input") for key in header.tensors)


def _is_embedding(header: Header) -> bool:
    """A few vectors (n, width), or one (width,), and nothing else."""
    shapes = [tensor.shape for tensor in header.tensors.values()]
    return len(shapes) <= _MAX_EMBEDDING_TENSORS and all(
        len(shape) in (1, 2) and shape[-1] in _FAMILY_BY_EMBEDDING for shape in shapes
    )


# In this order: a line is asked only where the ones above said no.
_KINDS: tuple[tuple[Kind, Callable[[Header], bool]], ...] = (
    ("face restorer", _restores_faces),
    # The first convolutions of U²-Net's nested Us, and the one that joins its side outputs.
    ("mask model", _has_all("stage1.rebnconvin.", "stage6.rebnconvin.", "outconv.")),
    ("controlnet", _begins("control_model.", "controlnet_", "input_hint_block.", "lllite_")),
    ("lora", lambda header: _is_ia3(header) or _is_lora(header)),
    ("checkpoint", _begins("model.diffusion_model.", "unet.", "transformer.transformer_blocks.")),
    # The UNet or transformer alone, as GGUF files and half of today's downloads have it.
    ("checkpoint", _has_all("input_blocks.", "middle_block.")),
    ("checkpoint", _has_all("down_blocks.", "up_blocks.", "conv_in.")),
    ("checkpoint", _begins("joint_blocks.", "double_blocks.", "transformer_blocks.")),
    (
        "vae",
        _begins("first_stage_model.", "decoder.conv_in.", "encoder.conv_in.", "decoder.layers.", "encoder.layers.0."),
    ),
    ("embedding", _begins("string_to_param", "emb_params", "clip_l", "clip_g", "clip_h")),
    (
        "text encoder",
        _begins("text_model.", "cond_stage_model.", "encoder.block.0.", "transformer.resblocks.", "enc.blk."),
    ),
    (
        "upscaler",
        _begins("conv_first.", "model.0.weight", "model.1.sub.", "body.0.", "m_head.", "layers.0.residual_group."),
    ),
    # TAESD's own layout: numbered layers, of which the first weighs latents and the third is a block.
    ("preview decoder", _has_all("1.weight", "3.conv.0.weight")),
    ("embedding", _is_embedding),
)


def kind_of(header: Header) -> Kind:
    """What the file is for; "unknown" where nothing in it says so."""
    for kind, matches in _KINDS:
        if matches(header):
            return kind
    return "unknown"


def family_of(header: Header, kind: Kind) -> str:
    """The family that a file beside the checkpoint was made for, "" where it does not say (a VAE's shapes do not)."""
    if kind == "embedding":
        widths = {tensor.shape[-1] for tensor in header.tensors.values() if tensor.shape}
        return "sdxl" if len(widths) > 1 else _FAMILY_BY_EMBEDDING.get(next(iter(widths), 0), "")
    if kind == "lora":
        title = family_title({key: tensor.shape for key, tensor in header.tensors.items()}, header.metadata)
        return _NAME_BY_TITLE.get(title, title)
    if kind == "controlnet":
        shapes = (tensor.shape for key, tensor in header.tensors.items() if key.endswith("attn2.to_k.weight"))
        return next((_FAMILY_BY_CONTEXT.get(shape[1], "") for shape in shapes if len(shape) == 2), "")
    return ""


# ---------------------------------------------------------------------------------------------------------------- LoRA

_FORMATS = (
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_blocks", "OFT"),
    (".oft_diag", "OFT"),
    (".on_input", "IA3"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (".diff", "full difference"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraContent:
    """A LoRA's spelling ("kohya", "diffusers" or "PEFT"), the kinds of change in it, and its ranks, smallest first."""

    spelling: str
    changes: tuple[str, ...]
    ranks: tuple[int, ...]


def lora_content(header: Header) -> LoraContent:
    """What a file of kind "lora" holds."""
    changes = {title for key in header.tensors for mark, title in _FORMATS if mark in key}
    ranks: set[int] = set()
    for key, tensor in header.tensors.items():
        part = read_key(key)
        if part is not None and part.name in ("down", "w1_b", "w2_b") and tensor.shape:
            ranks.add(tensor.shape[0])
            if part.name == "down":
                changes.add("LoCon" if len(tensor.shape) == 4 and tensor.shape[2:] != (1, 1) else "LoRA")
    first = next(iter(header.tensors))
    spelling = "kohya" if first.startswith(("lora_", "lycoris_", "oft_")) else "diffusers"
    if first.startswith("base_model.model."):
        spelling = "PEFT"
    return LoraContent(spelling=spelling, changes=tuple(sorted(changes)), ranks=tuple(sorted(ranks)))


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that the maker of a file says it listens to (modelspec's "trigger_phrase", an embedding's name)."""
    said = metadata.get("modelspec.trigger_phrase", "") or metadata.get("ss_trigger_words", "")
    return tuple(word.strip() for word in said.split(",") if word.strip())


def tag_counts(metadata: Mapping[str, str], *, most: int) -> dict[str, int]:
    """The `most` frequent tags of the pictures that a LoRA learnt from (kohya's "ss_tag_frequency"), in that order."""
    counts: dict[str, int] = {}
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in tags.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}  # a damaged remark is none
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most])
