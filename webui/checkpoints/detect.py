"""Which family a model file or folder belongs to, by the names and shapes of its weights; never by its file name.

`FAMILIES` are what Atelier runs, asked in the order in which they stand here. What is none of them is named as well as
can be, so that a person learns what the file is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from webui.checkpoints.completion import complete_header
from webui.checkpoints.families.base import Family, Folder, ModelConfig, read_json
from webui.checkpoints.families.diffusers_folder import DIFFUSERS, PipelineConfig, PipelineFamily
from webui.checkpoints.families.sd1 import SD1
from webui.checkpoints.families.sd2 import SD2
from webui.checkpoints.families.sdxl import SDXL, SDXL_REFINER
from webui.checkpoints.families.x4_upscaler import X4_UPSCALER
from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel

# A family is asked only where the ones before it said no.
FAMILIES: tuple[Family, ...] = (X4_UPSCALER, SDXL, SDXL_REFINER, SD2, SD1)

FOLDER_INDEX = "model_index.json"

_RUNS = (
    "Atelier runs Stable Diffusion 1, 2, 3 and XL, FLUX.1 and Chroma checkpoints, and many text-to-image models as"
    " diffusers folders"
)

Test = Callable[[Header], bool]


def _begins(*prefixes: str) -> Test:
    return lambda header: any(header.has(prefix) for prefix in prefixes)


def _ends(*suffixes: str) -> Test:
    return lambda header: any(key.endswith(suffixes) for key in header.tensors)


def _transformer(*names: str) -> Test:
    """Weights of a diffusion transformer, alone or in a whole checkpoint."""
    return _begins(*names, *(f"model.diffusion_model.{name}" for name in names))


# What also has the weights of a family, but wants to be run otherwise: asked before the families.
_IMPOSTORS: tuple[tuple[str, Test], ...] = (
    ("a ControlNet", _begins("control_model.", "controlnet_", "input_hint_block.")),
    ("Playground 2.5", _begins("edm_mean")),
    ("CosXL", _begins("edm_vpred.sigma_max")),
    ("Stable Diffusion 2.1 unCLIP", _begins("noise_augmentor.", "embedder.model.")),
    ("Stable Video Diffusion", _begins("model.diffusion_model.input_blocks.1.0.time_stack.")),
    ("Zero123", _begins("cc_projection.")),
)
# Asked after them; each line is tried only where the ones above said no.
_OTHERS: tuple[tuple[str, Test], ...] = (
    ("a LoRA, which belongs in models/Lora", _ends(".lora_down.weight", ".lora_A.weight", ".hada_w1_a", ".lokr_w1")),
    ("a part of Stable Diffusion 3", _transformer("joint_blocks.")),
    ("a part of Chroma", _transformer("distilled_guidance_layer.")),
    ("FLUX.2", _transformer("single_stream_modulation.")),
    ("a part of FLUX.1", _transformer("double_blocks.0.img_attn.")),
    ("HunyuanVideo", _transformer("txt_in.individual_token_refiner.")),
    ("Z-Image", _transformer("layers.0.adaLN_modulation.0.")),
    ("Lumina 2", _transformer("cap_embedder.0.")),
    ("Qwen-Image", _transformer("txt_in.text_norm.", "transformer_blocks.0.img_mod.1.")),
    ("Sana", _transformer("blocks.0.cross_attn.q_linear.")),
    ("AuraFlow", _transformer("double_layers.0.attn.w2q.")),
    ("HiDream", _transformer("double_stream_blocks.0.block.adaLN_modulation.")),
    ("Wan", _transformer("head.modulation")),
    ("LTX-Video", _transformer("patchify_proj.")),
    ("Stable Cascade", _begins("clip_txt_mapper.", "down_blocks.1.0.channelwise.")),
    ("another diffusion model", _begins("model.diffusion_model.")),
    ("a UNet in diffusers' layout; put its whole folder here", _begins("down_blocks.", "unet.down_blocks.")),
    ("an autoencoder (VAE), which belongs in models/VAE", _begins("first_stage_model.", "decoder.conv_in.")),
    ("a textual-inversion embedding, which belongs in embeddings", _begins("emb_params", "clip_l", "string_to_param")),
    ("an upscaler, which belongs in models/ESRGAN", _begins("conv_first.", "model.0.weight", "body.0.")),
    ("a text encoder", _begins("text_model.", "encoder.block.0.", "transformer.resblocks.")),
)
# Those of them that run from a diffusers folder.
_AS_FOLDERS = frozenset({"FLUX.2", "Z-Image", "Lumina 2", "Qwen-Image", "Sana", "AuraFlow"})


def detect(header: Header) -> Family | PipelineFamily:
    """The family of a single file; raises `UnsupportedModel` saying what the file looks like instead."""
    _refuse(header, _IMPOSTORS)
    for family in (*FAMILIES, DIFFUSERS):
        if family.recognises(header):
            return family
    _refuse(header, _OTHERS)
    first = next(iter(header.tensors))
    raise UnsupportedModel(
        f"{header.path.name} is no model that Atelier knows (its first weight is {first[:80]!r}); {_RUNS}."
    )


def _refuse(header: Header, known: tuple[tuple[str, Test], ...]) -> None:
    for title, matches in known:
        if matches(header):
            if title in _AS_FOLDERS:
                raise UnsupportedModel(
                    f"{header.path.name} looks like {title}, which runs only from a diffusers folder; put the model"
                    f" here as the whole folder with its {FOLDER_INDEX} instead of this file."
                )
            raise UnsupportedModel(f"{header.path.name} looks like {title}; {_RUNS}.")


def detect_folder(folder: Folder) -> Family | PipelineFamily:
    """The family of a diffusers folder; raises `UnsupportedModel` naming its pipeline."""
    for family in (*FAMILIES, DIFFUSERS):
        if family.recognises_folder(folder):
            return family
    pipeline = str(folder.index.get("_class_name"))[:80]
    raise UnsupportedModel(f"The folder {folder.path.name} holds a model for {pipeline} of another family; {_RUNS}.")


def identify(path: Path) -> tuple[Family | PipelineFamily, ModelConfig | PipelineConfig]:
    """Family and configuration of the file or diffusers folder at `path`; raises `UnsupportedModel`."""
    if path.is_dir():
        folder = Folder(path=path, index=read_json(path / FOLDER_INDEX, path))
        family = detect_folder(folder)
        return family, family.folder_config(folder)
    header = complete_header(path)
    family = detect(header)
    return family, family.config(header)
