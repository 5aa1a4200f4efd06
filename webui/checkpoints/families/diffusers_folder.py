"""Any other text-to-image model that lies here as a diffusers folder: it runs through diffusers' own pipeline.

So do the models of `webui.checkpoints.families.flow`, which come in one file as well.

Names only: whether diffusers really has these pipelines, and whether they take what the engine gives them, is held by
a test. Code that comes with a folder is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from webui.checkpoints.families import markers
from webui.checkpoints.families.base import Folder
from webui.checkpoints.families.flow import flow_model
from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

# Pipelines that make pictures from words alone, all of whose parts lie in their folder.
PIPELINES = frozenset(
    {
        "AuraFlowPipeline",
        "ChromaPipeline",
        "CogView3PlusPipeline",
        "CogView4Pipeline",
        "ErnieImagePipeline",
        "Flux2KleinPipeline",
        "Flux2Pipeline",
        "FluxPipeline",
        "HunyuanDiTPipeline",
        "Kandinsky3Pipeline",
        "Kandinsky5T2IPipeline",
        "Krea2Pipeline",
        "Lumina2Pipeline",
        "LuminaPipeline",
        "OvisImagePipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "PRXPipeline",
        "QwenImage21Pipeline",
        "QwenImagePipeline",
        "SanaPipeline",
        "StableDiffusion3Pipeline",
        "ZImagePipeline",
    }
)
# Whose classes a folder may name; a folder that names others brings code of its own.
_LIBRARIES = ("diffusers", "transformers")

_NATIVE_SIDE = 1024
_SIDES = range(64, 4097, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """What must be known before the pipeline is loaded: its class in diffusers, and the size it was trained for."""

    pipeline: str
    native_size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFamily:
    """The descriptor of models that only diffusers' pipelines run; the first two are as in `base.Family`.

    `config` and `folder_config` raise `UnsupportedModel` where file or folder is incomplete or brings code.
    """

    name: str
    title: str
    recognises: Callable[[Header], bool]
    config: Callable[[Header], PipelineConfig]
    recognises_folder: Callable[[Folder], bool]
    folder_config: Callable[[Folder], PipelineConfig]


def _recognises(header: Header) -> bool:
    return flow_model(header) is not None


def _config(header: Header) -> PipelineConfig:
    model = flow_model(header)
    if model is None:
        raise UnsupportedModel(f"{header.path.name} is no model for a diffusers pipeline.")
    model.config(header)  # what is not complete is told here, not at load
    size = markers.size_of(header) or Size(_NATIVE_SIDE, _NATIVE_SIDE)
    return PipelineConfig(pipeline=model.pipeline, native_size=size)


def _recognises_folder(folder: Folder) -> bool:
    return folder.index.get("_class_name") in PIPELINES


def _folder_config(folder: Folder) -> PipelineConfig:
    for name, entry in folder.index.items():
        if isinstance(entry, list) and entry and entry[0] is not None and entry[0] not in _LIBRARIES:
            raise UnsupportedModel(
                f"The folder {folder.path.name} takes its part {name!r} from {str(entry[0])[:80]!r};"
                f" Atelier runs no code but that of {' and '.join(_LIBRARIES)}."
            )
    return PipelineConfig(pipeline=str(folder.index["_class_name"]), native_size=_native_size(folder))


def _native_size(folder: Folder) -> Size:
    """The side that the denoiser's and the autoencoder's configurations make, else what such models are made for."""
    denoiser = next((name for name in ("transformer", "unet") if name in folder.index), None)
    if denoiser is None:
        raise UnsupportedModel(f"The folder {folder.path.name} names no transformer; copy the whole model again.")
    latent_side = folder.component(denoiser).get("sample_size")
    levels = _levels(folder.component("vae")) if "vae" in folder.index else 0
    side = latent_side * 2 ** (levels - 1) if isinstance(latent_side, int) and 0 < levels < 10 else _NATIVE_SIDE
    if side not in _SIDES:
        side = _NATIVE_SIDE
    return Size(side, side)


def _levels(vae: Mapping[str, Any]) -> int:
    """How many levels of resolution an autoencoder has, 0 where its configuration does not list them."""
    widths = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or ()
    return len(widths) if isinstance(widths, list) else 0


DIFFUSERS = PipelineFamily(
    name="diffusers",
    title="a diffusers pipeline",
    recognises=_recognises,
    config=_config,
    recognises_folder=_recognises_folder,
    folder_config=_folder_config,
)
