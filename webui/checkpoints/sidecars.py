"""What lies beside a checkpoint under its name, as A1111 has it: a .yaml with what it predicts, and its own VAE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel

PREDICTION_KEY = "modelspec.prediction_type"

VAE_SUFFIXES = (".vae.safetensors", ".vae.pt", ".vae.ckpt")
_MAX_YAML_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecars:
    """The files beside a checkpoint, each None where there is none."""

    config: Path | None
    vae: Path | None


def find_sidecars(path: Path) -> Sidecars:
    """What lies beside the checkpoint file at `path`."""
    config = path.with_suffix(".yaml")
    vaes = (path.with_suffix(suffix) for suffix in VAE_SUFFIXES)
    return Sidecars(config=config if config.is_file() else None, vae=next((vae for vae in vaes if vae.is_file()), None))


def with_sidecar(header: Header) -> Header:
    """`header` with what the .yaml beside the file says: version 2's files need one to be known as v-prediction.

    The image size in these files is one of latents and is the same in all of them, whatever the model was trained for,
    so it is not used. Raises `UnsupportedModel` when the .yaml cannot be read.
    """
    config = find_sidecars(header.path).config
    if config is None or PREDICTION_KEY in header.metadata:
        return header
    said = _parameterization(config)
    if said is None:
        return header
    prediction = "v" if said == "v" else "epsilon"
    return dataclasses.replace(header, metadata={**header.metadata, PREDICTION_KEY: prediction})


def _parameterization(config: Path) -> str | None:
    """``model.params.parameterization`` ("eps" or "v") of CompVis' configurations, None where it is not said."""
    import yaml

    try:
        with config.open("rb") as file:
            value: Any = yaml.safe_load(file.read(_MAX_YAML_BYTES))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{config.name}, beside the model, cannot be read; mend it or remove it.") from error
    for name in ("model", "params", "parameterization"):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None
