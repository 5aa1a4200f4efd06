"""A LoRA file → the changes it makes, by module; and whether they fit a checkpoint's modules.

The whole file is read into memory, for it is small and may be replaced while it is in use. Nothing here touches a
model: that is `webui.engine.patches`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from webui.checkpoints.lora.kinds import Kind, Parts, kind_of
from webui.checkpoints.lora.names import Address, ModulePlaces, read_key
from webui.checkpoints.lora.scan import LoraFile, family_title
from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel

logger = logging.getLogger(__name__)

# Embeddings that some trainers pack into the file; they are no changes of weights.
_BUNDLED = "bundle_emb."
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_PEFT_CONFIG = "adapter_config.json"


class Target(NamedTuple):
    """A weight of a checkpoint: "unet" or a text encoder's name, and the parameter's path there."""

    component: str
    parameter: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What a file does to one weight: `kind.delta(parts, weight)`, at full strength."""

    kind: Kind
    parts: Parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraWeights:
    """A LoRA file in memory, on the CPU in its own dtype. `family` is the title of what it was made for, "" unknown."""

    file: LoraFile
    family: str
    changes: Mapping[tuple[Address, str], Change]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedLora:
    """A LoRA's changes by the weights of one checkpoint, and how many of its modules that checkpoint lacks."""

    changes: Mapping[Target, Change]
    missing: int


def read_lora(file: LoraFile, *, conversions: Path | None = None) -> LoraWeights:
    """Reads a LoRA of any kind that `kinds` knows; raises `UnsupportedModel` naming the file and what is wrong.

    `conversions` is the folder where `webui.checkpoints.weights` keeps converted pickles.
    """
    with open_weights(file.path, conversions=conversions) as weights:
        tensors = {name: tensor.clone() for name, tensor in weights.tensors()}
        metadata = weights.header.metadata
    grouped: dict[tuple[Address, str], dict[str, Tensor]] = {}
    stems: dict[Address, str] = {}
    for key, tensor in tensors.items():
        if key.startswith(_BUNDLED):
            logger.warning("%s brings an embedding, which is not used: %s", file.path.name, key[:120])
            continue
        part = read_key(key)
        if part is None:
            raise UnsupportedModel(f"{file.path.name} is no LoRA that Atelier knows: it holds {key[:120]!r}.")
        grouped.setdefault((part.address, part.parameter), {})[part.name] = tensor
        stems[part.address] = key
    alphas = _peft_alphas(file.path, metadata)
    changes = {
        place: _change(file.path, stems[place[0]], parts, alphas) for place, parts in grouped.items() if _counts(parts)
    }
    if not changes:
        raise UnsupportedModel(f"{file.path.name} holds no LoRA.")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return LoraWeights(file=file, family=family_title(shapes, metadata), changes=changes)


def fit(lora: LoraWeights, places: ModulePlaces, shapes: Mapping[Target, tuple[int, ...]]) -> FittedLora:
    """The weights that `lora` changes in a checkpoint with these modules and these `shapes` of weights.

    Raises `ValueError` with a reason where it was made for a model of another shape: no module of that name, or one
    whose weight its change does not fit. Only shapes are computed.
    """
    fitted: dict[Target, Change] = {}
    missing = 0
    for (address, parameter), change in lora.changes.items():
        place = places.find(address)
        target = None if place is None else Target(place.component, f"{place.path}.{parameter}")
        if target is None or target not in shapes:
            missing += 1
            continue
        parts = {name: torch.empty_like(tensor, device="meta").float() for name, tensor in change.parts.tensors.items()}
        weight = torch.empty(shapes[target], device="meta")
        try:
            change.kind.delta(Parts(tensors=parts, alpha=change.parts.alpha), weight)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"its {address.path} does not fit {tuple(weight.shape)}") from error
        fitted[target] = change
    if not fitted:
        raise ValueError(f"none of its {missing} modules is there")
    return FittedLora(changes=fitted, missing=missing)


def _counts(parts: Mapping[str, Tensor]) -> bool:
    """Whether there is more than the numbers that go with a change: some files keep an alpha for every module."""
    return not parts.keys() <= {"alpha", "on_input"}


def _change(path: Path, key: str, parts: dict[str, Tensor], alphas: _Alphas) -> Change:
    alpha = parts.pop("alpha", None)
    on_input = parts.pop("on_input", None)
    if on_input is not None and bool(on_input):
        parts["inputs"] = parts.pop("outputs")
    if "magnitude" in parts:  # PEFT's is always over the outputs, and (1, outputs, 1, 1) on convolutions
        parts["dora_scale"] = parts.pop("magnitude").reshape(-1, 1)
    kind = kind_of(frozenset(parts))
    if kind is None:
        names = ", ".join(sorted(parts))
        raise UnsupportedModel(f"{path.name} is damaged or of an unknown kind: at {key[:120]!r} it has {names} alone.")
    value = alphas.find(key, parts) if alpha is None else float(alpha)
    return Change(kind=kind, parts=Parts(tensors=parts, alpha=value))


# ------------------------------------------------------------------------------------------------- alpha beside weights


@dataclass(frozen=True, slots=True)
class _Alphas:
    """PEFT keeps alpha in a configuration beside the weights, with exceptions for modules by the end of their path."""

    by_prefix: Mapping[str, Mapping[str, Any]]  # "unet", "text_encoder", … or "" → lora_alpha, alpha_pattern, …

    def find(self, key: str, parts: Mapping[str, Tensor]) -> float | None:
        """The alpha of the module that `key` is of; None where nothing says it."""
        config = self.by_prefix.get(key.split(".")[0], self.by_prefix.get("", {}))
        alpha = config.get("lora_alpha")
        for pattern, exception in (config.get("alpha_pattern") or {}).items():
            if f".{pattern}." in f".{key}":
                alpha = exception
        if not isinstance(alpha, int | float) or "down" not in parts:
            return None
        # Rank-stabilised LoRA divides by the root of the rank (Kalajdzievski 2023, arXiv 2312.03732, section 4).
        return alpha * math.sqrt(parts["down"].shape[0]) if config.get("use_rslora") else float(alpha)


def _peft_alphas(path: Path, metadata: Mapping[str, str]) -> _Alphas:
    """From diffusers' entry in the file's metadata, or from PEFT's file beside it."""
    beside = path.with_name(_PEFT_CONFIG)
    try:
        if _DIFFUSERS_METADATA in metadata:
            values = json.loads(metadata[_DIFFUSERS_METADATA])
        elif path.stem == "adapter_model" and beside.is_file():
            return _Alphas({"": json.loads(beside.read_text(encoding="utf-8"))})
        else:
            return _Alphas({})
        configs: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            prefix, _, field = name.partition(".")
            configs.setdefault(prefix, {})[field] = value
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise UnsupportedModel(f"{path.name} has a damaged configuration: {error}.") from error
    return _Alphas(configs)
