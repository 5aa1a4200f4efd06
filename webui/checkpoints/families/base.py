"""What a model family is to the rest of the program: how to recognise its files, configure and name its modules.

A new family is a new file beside this one that makes a `Family`, and a line in `webui.checkpoints.detect`. No torch:
the catalogue asks these questions while torch is still being imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

PredictionType = Literal["epsilon", "v_prediction"]
TextModule = Literal["text_encoder", "text_encoder_2"]
TextEncoderName = Literal["clip_l", "clip_h", "clip_g"]
TextNaming = Literal["clip", "open_clip"]
# What the UNet takes beside the text's states: nothing; a pooled text and sizes; a pooled text, sizes and a score.
Conditioning = Literal["text", "sdxl", "refiner"]
# What the first convolution takes beside the noisy latents: nothing; a mask and the masked picture's latents; a
# picture's latents; a depth map; a small picture.
UNetInput = Literal["latents", "inpaint", "edit", "depth", "low_res"]


class LatentToRgb(NamedTuple):
    """A linear map from one latent pixel to one RGB pixel, for previews: ``rgb = latent @ weights + bias``.

    `weights` has a row of three for each latent channel; latents are scaled (near unit deviation), RGB is in -1…1.
    """

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderConfig:
    """One text encoder: its place in a diffusers folder, its class's keyword arguments, and what is read from it.

    `naming` says whether its weights have transformers' names or open_clip's; the four before it are as in
    `webui.checkpoints.loaded.TextEncoder`.
    """

    component: TextModule
    name: TextEncoderName
    config: Mapping[str, Any]
    pad_token: int
    layer: int
    final_norm: bool
    pooled: bool
    naming: TextNaming = "clip"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All that must be known beside the weights: keyword arguments of each module's class, and of the schedule.

    `scheduler` has "beta_start", "beta_end", "beta_schedule" and "num_train_timesteps" as diffusers means them.
    `prediction_type` is None where nothing in the file says it, so that only the loaded network can tell.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderConfig, ...]
    scheduler: Mapping[str, Any]
    scaling_factor: float
    prediction_type: PredictionType | None
    zero_terminal_snr: bool
    conditioning: Conditioning
    input: UNetInput
    native_size: Size
    latent_to_rgb: LatentToRgb | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A diffusers folder: its model_index.json, and each component's configuration that it needs."""

    path: Path
    index: Mapping[str, Any]

    def component(self, name: str, file: str = "config.json") -> Mapping[str, Any]:
        """The configuration of one component; raises `UnsupportedModel` when it is missing or damaged."""
        return read_json(self.path / name / file, self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentLayout:
    """Where one module's weights are in a single file, and what they are called there.

    `prefixes` are tried in order. `table` maps module paths below the prefix to the module's own (see
    `webui.checkpoints.keymap`). Names below the prefix that begin with one of `surplus` are known and not needed.
    """

    prefixes: tuple[str, ...]
    table: Mapping[str, str]
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family's descriptor. `recognises*` only look; `*_config` raise `UnsupportedModel` where details do not fit.

    `name` is for programs (a LoRA fits checkpoints of its family), `title` for people.
    """

    name: str
    title: str
    recognises: Callable[[Header], bool]
    config: Callable[[Header], ModelConfig]
    recognises_folder: Callable[[Folder], bool]
    folder_config: Callable[[Folder], ModelConfig]
    layout: Callable[[ModelConfig], Mapping[str, ComponentLayout]]


def read_json(path: Path, model: Path) -> Mapping[str, Any]:
    """A JSON object of the model folder `model`; raises `UnsupportedModel` naming folder and file."""
    where = path.relative_to(model).as_posix()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModel(f"The folder {model.name} lacks {where}; copy the whole model again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{where} in the folder {model.name} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{where} in the folder {model.name} is not a JSON object; copy the model again.")
    return value
