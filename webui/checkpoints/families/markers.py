"""What people write into and beside a checkpoint about how it was trained: prediction, schedule, size, heads.

Two files with the same weights' names can want different numbers. What decides, the first that says anything: the
same-name .yaml beside the file (the original's configuration, as A1111 reads it), the file's metadata (ModelSpec,
https://github.com/Stability-AI/ModelSpec, and kohya's), and empty tensors that trainers leave as marks. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from webui.checkpoints.families.base import PredictionType
from webui.checkpoints.header import Header
from webui.checkpoints.sidecars import find_sidecars
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

# Our own entry: keyword arguments of each module's class, over what the shapes tell.
CONFIG_KEY = "atelier.config"
PREDICTION_KEY = "modelspec.prediction_type"
RESOLUTION_KEY = "modelspec.resolution"
ZERO_TERMINAL_KEY = "ss_zero_terminal_snr"

# Names of empty tensors; NoobAI's and its descendants' files have them.
V_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"

_PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
_MAX_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a configuration in the original's format says, as far as it says it.

    `unet` and `scheduler` are keyword arguments for diffusers' classes.
    """

    prediction: PredictionType | None
    scaling_factor: float | None
    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]


def read_sidecar(model: Path) -> Sidecar | None:
    """The configuration beside `model`; raises `UnsupportedModel` when it cannot be read as one."""
    path = find_sidecars(model).config
    if path is None:
        return None
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise UnsupportedModel(f"{path.name} is too large for a model's configuration; move it away.")
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        unet = (params.get("unet_config") or params["network_config"])["params"]
        return Sidecar(
            prediction=_sidecar_prediction(params),
            scaling_factor=float(params["scale_factor"]) if "scale_factor" in params else None,
            unet=_sidecar_heads(unet),
            scheduler={
                ours: float(params[theirs])
                for ours, theirs in (("beta_start", "linear_start"), ("beta_end", "linear_end"))
                if theirs in params
            },
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UnsupportedModel(
            f"{path.name} beside {model.name} is no configuration of a Stable Diffusion model: {error}; correct it or"
            " move it away."
        ) from error


def _sidecar_prediction(params: Mapping[str, Any]) -> PredictionType | None:
    """CompVis' files name it, Stability's for SDXL name the class that scales by it."""
    if "parameterization" in params:
        return _PREDICTIONS[params["parameterization"]]
    scaling = params.get("denoiser_config", {}).get("params", {}).get("scaling_config", {}).get("target", "")
    return {"VScaling": "v_prediction", "EpsScaling": "epsilon"}.get(scaling.rpartition(".")[2])  # pyright: ignore[reportReturnType]  # the values are literals


def _sidecar_heads(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The original has one number of heads for all levels, or one width of a head."""
    channels = int(unet.get("num_head_channels", -1))
    if channels > 0:
        widths = [int(unet["model_channels"]) * int(factor) for factor in unet["channel_mult"]]
        return {"attention_head_dim": [width // channels for width in widths]}
    return {"attention_head_dim": int(unet["num_heads"])} if "num_heads" in unet else {}


def prediction_of(header: Header, sidecar: Sidecar | None) -> PredictionType | None:
    """What the network predicts, None where nothing says it; raises `UnsupportedModel` for what Atelier has not."""
    if sidecar is not None and sidecar.prediction is not None:
        return sidecar.prediction
    if PREDICTION_KEY in header.metadata:
        said = header.metadata[PREDICTION_KEY].strip().lower()
        if said not in _PREDICTIONS:
            raise UnsupportedModel(f"{header.path.name} predicts {said[:40]!r}; Atelier knows epsilon and v.")
        return _PREDICTIONS[said]
    return "v_prediction" if V_MARK in header.tensors else None


def zero_terminal_snr_of(header: Header) -> bool:
    """Whether the last timestep was trained as pure noise (Lin et al. 2023, arXiv 2305.08891)."""
    return ZERO_TERMINAL_MARK in header.tensors or header.metadata.get(ZERO_TERMINAL_KEY, "").lower() == "true"


def size_of(header: Header) -> Size | None:
    """The size in pixels that the model was trained at, None where the metadata does not say it."""
    match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", header.metadata.get(RESOLUTION_KEY, ""))
    return Size(int(match[1]), int(match[2])) if match else None


def own_config(header: Header) -> Mapping[str, Any]:
    """Our own metadata entry, empty where there is none; raises `UnsupportedModel` when it is damaged."""
    try:
        values = json.loads(header.metadata.get(CONFIG_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{header.path.name} has a damaged {CONFIG_KEY!r} in its metadata: {error}.") from error
    if not isinstance(values, dict):
        raise UnsupportedModel(f"{header.path.name} has metadata {CONFIG_KEY!r} that is not a JSON object.")
    return values
