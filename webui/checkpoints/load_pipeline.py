"""A diffusers folder → a whole pipeline of diffusers', for the models that Atelier's own families do not run.

Reads that folder and nothing else: no network, no pickles, no code that the folder brings.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from webui.checkpoints.detect import identify
from webui.checkpoints.families.diffusers_folder import PipelineConfig
from webui.checkpoints.weights import refuse_nan
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.ports import CheckpointInfo
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedPipeline:
    """A pipeline in main memory, its networks in evaluation mode; whoever owns it may move them."""

    info: CheckpointInfo
    pipeline: DiffusionPipeline

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Its components that have weights, by the names that the folder gives them."""
        modules = {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        return {name: module for name, module in modules.items() if any(True for _ in module.parameters())}


def load_pipeline(path: Path, info: CheckpointInfo, *, dtype: torch.dtype) -> LoadedPipeline:
    """Loads the diffusers folder at `path` in `dtype` into main memory.

    Raises `CheckpointNotFound` when the folder is gone, `UnsupportedModel` when it is incomplete, damaged, has its
    weights in pickles, or brings code of its own.
    """
    if not path.exists():
        raise CheckpointNotFound(f"The checkpoint {info.name!r} is no longer at {path}; reload the list of models.")
    _, config = identify(path)
    if not isinstance(config, PipelineConfig):
        raise UnsupportedModel(
            f"{path.name} is no longer a folder for a diffusers pipeline; reload the list of models."
        )
    started = time.monotonic()
    torchvision_operators.declare()
    import diffusers

    try:
        with warnings.catch_warnings():
            # diffusers 0.42 calls it dtype and warns; 0.41, the last for Python 3.10, knows torch_dtype only.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            pipeline = getattr(diffusers, config.pipeline).from_pretrained(
                str(path), torch_dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    pipeline.set_progress_bar_config(disable=True)
    loaded = LoadedPipeline(info=info, pipeline=pipeline)
    for component, module in loaded.modules.items():
        _refuse_incomplete(module.eval().requires_grad_(False), f"{component.replace('_', ' ')} of {path.name}")
    logger.info("Loaded %s (%s) in %.1f s", info.name, config.pipeline, time.monotonic() - started)
    return loaded


def _refuse_incomplete(module: nn.Module, what: str) -> None:
    for name, weight in module.named_parameters():
        if weight.device.type == "meta":
            raise UnsupportedModel(f"The {what} lacks the weight {name!r}; copy the whole model again.")
        refuse_nan(weight, name, what)


def _unreadable(path: Path, error: Exception) -> UnsupportedModel:
    told = " ".join(str(error).split())[:400]
    return UnsupportedModel(
        f"The folder {path.name} cannot be loaded ({told}); it must hold the whole model, with safetensors weights."
    )
