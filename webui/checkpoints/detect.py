"""Which family a model file or folder belongs to, by the names and shapes of its weights; never by its file name.

The families that Atelier runs are asked in a fixed order. What none of them recognises is named as well as can be, so
that a person learns what the file is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from webui.checkpoints.families.base import Family, Folder, ModelConfig, read_json
from webui.checkpoints.families.sd1 import SD1
from webui.checkpoints.header import Header, read_header
from webui.core.errors import UnsupportedModel

FAMILIES: tuple[Family, ...] = (SD1,)

FOLDER_INDEX = "model_index.json"


def _begins(*prefixes: str) -> Callable[[Header], bool]:
    return lambda header: any(header.has(prefix) for prefix in prefixes)


def _ends(*suffixes: str) -> Callable[[Header], bool]:
    return lambda header: any(key.endswith(suffixes) for key in header.tensors)


# In this order: each line is tried only where the ones above said no.
_OTHERS: tuple[tuple[str, Callable[[Header], bool]], ...] = (
    ("a ControlNet", _begins("control_model.", "controlnet_", "input_hint_block.")),
    ("a LoRA, which belongs in models/Lora", _ends(".lora_down.weight", ".lora_A.weight", ".hada_w1_a", ".lokr_w1")),
    ("Stable Diffusion XL", _begins("conditioner.embedders.", "model.diffusion_model.label_emb.")),
    ("Stable Diffusion 2", _begins("cond_stage_model.model.")),
    ("Stable Diffusion 3", _begins("model.diffusion_model.joint_blocks.", "joint_blocks.")),
    ("Flux", _begins("model.diffusion_model.double_blocks.", "double_blocks.")),
    ("a latent diffusion model with linear projections, like Stable Diffusion 2", _begins("model.diffusion_model.in")),
    ("another diffusion model", _begins("model.diffusion_model.")),
    ("a UNet in diffusers' layout; put its whole folder here", _begins("down_blocks.", "unet.down_blocks.")),
    ("an autoencoder (VAE), which belongs in models/VAE", _begins("first_stage_model.", "decoder.conv_in.")),
    ("a textual-inversion embedding, which belongs in embeddings", _begins("emb_params", "clip_l", "string_to_param")),
    ("an upscaler, which belongs in models/ESRGAN", _begins("conv_first.", "model.0.weight", "body.0.")),
    ("a text encoder", _begins("text_model.", "encoder.block.0.")),
)


def detect(header: Header) -> Family:
    """The family of a single file; raises `UnsupportedModel` saying what the file looks like instead."""
    for family in FAMILIES:
        if family.recognises(header):
            return family
    known = " or ".join(family.title for family in FAMILIES)
    for title, matches in _OTHERS:
        if matches(header):
            raise UnsupportedModel(
                f"{header.path.name} looks like {title}; Atelier can run {known} checkpoints so far."
            )
    first = next(iter(header.tensors))
    raise UnsupportedModel(
        f"{header.path.name} is no model that Atelier knows (its first weight is {first[:80]!r}); it can run {known}"
        " checkpoints so far."
    )


def detect_folder(folder: Folder) -> Family:
    """The family of a diffusers folder; raises `UnsupportedModel` naming its pipeline."""
    for family in FAMILIES:
        if family.recognises_folder(folder):
            return family
    known = " or ".join(family.title for family in FAMILIES)
    raise UnsupportedModel(
        f"The folder {folder.path.name} holds a model for {str(folder.index.get('_class_name'))[:80]} of another"
        f" family; Atelier can run {known} so far."
    )


def identify(path: Path) -> tuple[Family, ModelConfig]:
    """Family and configuration of the file or diffusers folder at `path`; raises `UnsupportedModel`."""
    if path.is_dir():
        folder = Folder(path=path, index=read_json(path / FOLDER_INDEX, path))
        family = detect_folder(folder)
        return family, family.folder_config(folder)
    header = read_header(path)
    family = detect(header)
    return family, family.config(header)
