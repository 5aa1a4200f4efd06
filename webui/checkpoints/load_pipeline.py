"""A diffusers folder or a single file → a whole pipeline of diffusers', for what Atelier's own families do not run.

Of a folder it reads that and nothing else: no network, no pickles, no code that the folder brings. Single files are
`webui.checkpoints.single_pipeline`'s.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from webui.checkpoints.detect import FOLDER_INDEX, identify
from webui.checkpoints.families.base import LatentToRgb, read_json
from webui.checkpoints.families.diffusers_folder import PipelineConfig
from webui.checkpoints.header import read_header
from webui.checkpoints.latent_colours import fit_colours
from webui.checkpoints.single_pipeline import load_single_pipeline
from webui.checkpoints.weights import refuse_nan
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.ports import CheckpointInfo
from webui.hardware import torchvision_operators
from webui.hardware.low_bits import FULL, pack_weights

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# What diffusers and transformers raise for a folder that is incomplete or damaged.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)

# Autoencoders have blocks as well, but are small, and what they round is seen.
_PACKED = ("unet", "transformer", "text_encoder")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedPipeline:
    """A pipeline in main memory, its networks in evaluation mode; whoever owns it may move them.

    `latent_to_rgb` shows its latents as colours, None where it cannot. `notices` are what people should know of it, a
    sentence each.
    """

    info: CheckpointInfo
    pipeline: DiffusionPipeline
    latent_to_rgb: LatentToRgb | None
    notices: tuple[str, ...] = ()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Its components that have weights, by the names that the pipeline gives them."""
        return modules_of(self.pipeline)


def modules_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components of `pipeline` that have weights."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: module for name, module in modules.items() if any(True for _ in module.parameters())}


def load_pipeline(
    path: Path,
    info: CheckpointInfo,
    *,
    dtype: torch.dtype,
    models: Path,
    conversions: Path | None = None,
    weights: str = FULL,
) -> LoadedPipeline:
    """Loads the diffusers folder or single file at `path` in `dtype` into main memory.

    The weights of its network, and of T5, lie in the format `weights` (see `webui.hardware.low_bits`). What a single
    file does not bring is taken from the folder `models`; pickles among it are converted, and kept in `conversions` if
    there is such a folder. Raises `CheckpointNotFound` when `path` is gone, `UnsupportedModel` when it is incomplete or
    damaged, or is a folder that has its weights in pickles or brings code of its own.
    """
    if not path.exists():
        raise CheckpointNotFound(f"The checkpoint {info.name!r} is no longer at {path}; reload the list of models.")
    _, config = identify(path)
    if not isinstance(config, PipelineConfig):
        raise UnsupportedModel(f"{path.name} is no longer for a diffusers pipeline; reload the list of models.")
    started = time.monotonic()
    torchvision_operators.declare()
    notices: tuple[str, ...] = ()
    if path.is_dir():
        pipeline = _from_folder(path, config, dtype, weights)
    else:
        pipeline, notices = load_single_pipeline(
            read_header(path), dtype=dtype, models=models, conversions=conversions, weights=weights
        )
    pipeline.set_progress_bar_config(disable=True)
    logger.info("Loaded %s (%s) in %.1f s", info.name, config.pipeline, time.monotonic() - started)
    return LoadedPipeline(info=info, pipeline=pipeline, latent_to_rgb=fit_colours(pipeline), notices=notices)


def _from_folder(path: Path, config: PipelineConfig, dtype: torch.dtype, weights: str) -> DiffusionPipeline:
    import diffusers

    try:
        with warnings.catch_warnings():
            # diffusers 0.42 calls it dtype and warns; 0.41, the last for Python 3.10, knows torch_dtype only.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            modules = {name: _component(path, name, made, dtype, weights) for name, made in _classes(path).items()}
            pipeline = getattr(diffusers, config.pipeline).from_pretrained(
                str(path), **modules, torch_dtype=dtype, local_files_only=True, trust_remote_code=False
            )
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return pipeline


def _classes(path: Path) -> dict[str, type[ModelMixin | PreTrainedModel]]:
    """The classes of the folder's networks; `identify` made sure that they are the libraries' own."""
    found = {}
    for name, entry in read_json(path / FOLDER_INDEX, path).items():
        if isinstance(entry, list) and entry and entry[0] is not None:
            made = getattr(importlib.import_module(entry[0]), entry[1])
            if issubclass(made, nn.Module):
                found[name] = made
    return found


def _component(
    path: Path, name: str, made: type[ModelMixin | PreTrainedModel], dtype: torch.dtype, weights: str
) -> nn.Module:
    """One network of the folder; raises `UnsupportedModel` for weights that its file lacks or that are not finite.

    The libraries themselves would make up what is missing, and write a line into the log. They load in full, so it is
    packed before the next one comes.
    """
    from transformers import PreTrainedModel

    named: dict[str, Any] = {"dtype" if issubclass(made, PreTrainedModel) else "torch_dtype": dtype}
    load: Any = made.from_pretrained  # of which the libraries do not say that it returns two things here
    module, told = load(
        str(path / name), **named, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    what = f"{name.replace('_', ' ')} of {path.name}"
    missing = set(told["missing_keys"])
    if missing:
        first = next((key for key in module.state_dict() if key in missing), min(missing))
        raise UnsupportedModel(f"The {what} lacks {len(missing)} weights, {first!r} first; copy the whole model again.")
    for key, weight in module.eval().requires_grad_(False).named_parameters():
        refuse_nan(weight, key, what)
    if name.startswith(_PACKED):
        pack_weights(module, weights)
    return module


def _unreadable(path: Path, error: Exception) -> UnsupportedModel:
    told = " ".join(str(error).split())[:400]
    return UnsupportedModel(
        f"The folder {path.name} cannot be loaded ({told}); it must hold the whole model, with safetensors weights."
    )
