"""What `python -m webui inspect` says of a file: all that its header tells, as one JSON object. Loads no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from webui.checkpoints.content import family_of, kind_of, lora_content, tag_counts, trigger_words
from webui.checkpoints.detect import FOLDER_INDEX, identify
from webui.checkpoints.families.base import ModelConfig
from webui.checkpoints.families.diffusers_folder import PipelineConfig
from webui.checkpoints.header import Header, read_header
from webui.checkpoints.scan import model_files
from webui.checkpoints.sidecars import find_sidecars
from webui.core.errors import UnsupportedModel

_MOST_TAGS = 20
_LONGEST_REMARK = 300
_CONV_IN = ("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
_CONV_OUT = ("model.diffusion_model.out.2.weight", "out.2.weight", "conv_out.weight")


def model_paths(path: Path) -> Iterator[Path]:
    """What to inspect at `path`: itself, or all models below a folder; a diffusers folder is one of them."""
    if path.is_dir() and not (path / FOLDER_INDEX).is_file():
        yield from model_files(path)
    else:
        yield path


def inspect(path: Path) -> dict[str, Any]:
    """What the header of the model at `path` says, without the entries that do not apply; never raises for a bad file.

    "kind" is always there. "error" says in a sentence why the model is unknown, broken, or cannot be run.
    """
    report = {"path": str(path), "kind": "unknown"}
    try:
        report |= _folder(path) if path.is_dir() else _file(path)
    except UnsupportedModel as error:
        report["error"] = str(error)
    return {key: value for key, value in report.items() if value not in (None, "", (), {}, [])}


def _folder(path: Path) -> dict[str, Any]:
    family, config = identify(path)
    return {"kind": "checkpoint", "family": family.name, "container": "diffusers", **_from_config(config)}


def _file(path: Path) -> dict[str, Any]:
    header = read_header(path)
    kind = kind_of(header)
    report = {"kind": kind, "family": family_of(header, kind), **_common(header)}
    if kind == "checkpoint":
        report |= _checkpoint(path, header)
    elif kind == "lora":
        content = lora_content(header)
        report |= {"format": content.spelling, "changes": content.changes, "ranks": content.ranks}
    elif kind == "vae":
        report |= _vae(header)
    elif kind == "unknown":
        first = next(iter(header.tensors))
        report["error"] = f"{path.name} is no model that Atelier knows (its first weight is {first[:80]!r})."
    return report


def _common(header: Header) -> dict[str, Any]:
    """What every file says: what it is kept in, precision, size, and what its maker wrote."""
    numbers: Counter[str] = Counter()
    for tensor in header.tensors.values():
        numbers[tensor.dtype] += math.prod(tensor.shape)
    return {
        "container": header.container,
        "dtypes": [dtype for dtype, _ in numbers.most_common()],
        "parameters": sum(numbers.values()),
        "trigger_words": trigger_words(header.metadata),
        "tags": tag_counts(header.metadata, most=_MOST_TAGS),
        "metadata": {key: value for key, value in header.metadata.items() if len(value) <= _LONGEST_REMARK},
    }


def _checkpoint(path: Path, header: Header) -> dict[str, Any]:
    sidecars = find_sidecars(path)
    report: dict[str, Any] = {
        "in_channels": _side(header, _CONV_IN, 1),
        "out_channels": _side(header, _CONV_OUT, 0),
        "config_file": sidecars.config and sidecars.config.name,
        "vae_file": sidecars.vae and sidecars.vae.name,
    }
    try:
        family, config = identify(path)
    except UnsupportedModel as error:
        return report | {"error": str(error)}
    return report | {"family": family.name, **_from_config(config)}


def _from_config(config: ModelConfig | PipelineConfig) -> dict[str, Any]:
    if isinstance(config, PipelineConfig):
        return {"pipeline": config.pipeline, "native_size": str(config.native_size)}
    return {
        "prediction_type": config.prediction_type,
        "in_channels": config.unet.get("in_channels", 4),
        "out_channels": config.unet.get("out_channels", 4),
        "native_size": str(config.native_size),
    }


def _vae(header: Header) -> dict[str, Any]:
    """Pictures' channels on either side, and the latents' between them."""
    prefixes = ("", "first_stage_model.", "vae.")
    return {
        "in_channels": _side(header, tuple(f"{prefix}encoder.conv_in.weight" for prefix in prefixes), 1),
        "out_channels": _side(header, tuple(f"{prefix}decoder.conv_out.weight" for prefix in prefixes), 0),
        "latent_channels": _side(header, tuple(f"{prefix}decoder.conv_in.weight" for prefix in prefixes), 1),
    }


def _side(header: Header, keys: tuple[str, ...], axis: int) -> int | None:
    """The size along `axis` of the first convolution among `keys` that is there."""
    shapes = (header.shape(key) for key in keys)
    return next((shape[axis] for shape in shapes if shape is not None and len(shape) == 4), None)
