"""LoRAs merged into a checkpoint's weights, and taken out again bit for bit.

Merging costs nothing while sampling, whatever the LoRA, and one pass over the touched weights when the wish changes.
So that asking for the same again costs nothing, a wish stays in the weights until the next one: whoever runs a model
says first, through `WeightPatches.apply`, what shall be in it. Of every touched weight the original is kept in main
memory; a changed strength starts from it, not from what was there.

A packed weight stays packed. Those of GGUF files are of so few bits that a LoRA would be rounded away, so they lie in
eight while one is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from webui.checkpoints.keymap import UNetShape, unet_table
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.lora.kinds import Parts
from webui.checkpoints.lora.names import ModulePlaces
from webui.checkpoints.lora.read import Change, FittedLora, LoraWeights, Target, fit
from webui.checkpoints.lora.scan import LoraFile
from webui.hardware.graphs import set_recorded
from webui.hardware.low_bits import LowBitLayer, Packed, dense_shapes, packed_layer

logger = logging.getLogger(__name__)

UNET = "unet"
_Original = Tensor | Packed  # the latter of packed layers
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wish:
    """A LoRA that fits the checkpoint, and how strongly it shall count; `rank` as in `kinds.Parts`."""

    file: LoraFile
    lora: FittedLora
    text_weight: float
    unet_weight: float
    rank: int | None = None

    def strength(self, component: str) -> float:
        """How strongly it changes that component, "unet" or a text encoder's name."""
        return self.unet_weight if component == UNET else self.text_weight


class _Term(NamedTuple):
    """What stands in one weight; equal terms of equal files are the same change."""

    file: LoraFile
    strength: float
    rank: int | None


class WeightPatches:
    """What is merged into one checkpoint's weights. Owned by the manager, which lets one thread in at a time.

    The modules may move between devices and be replaced in their memory, but nobody else may change their weights.
    """

    def __init__(self, checkpoint: LoadedCheckpoint) -> None:
        encoders: dict[str, nn.Module] = {encoder.name: encoder.module for encoder in checkpoint.text_encoders}
        self._modules: dict[str, nn.Module] = {UNET: checkpoint.unet, **encoders}
        self._shapes = {
            Target(component, name): shape
            for component, module in self._modules.items()
            for name, shape in dense_shapes(module)
        }
        self._places = ModulePlaces(
            unet=_module_paths(checkpoint.unet),
            text_encoders={name: _module_paths(module) for name, module in encoders.items()},
            original=unet_table(UNetShape.from_config(checkpoint.unet.config)),
        )
        self._fitted: dict[LoraFile, FittedLora] = {}  # of the last wishes: finding out takes a while for large LoRAs
        self._originals: dict[Target, _Original] = {}
        self._merged: dict[Target, tuple[_Term, ...]] = {}

    @property
    def kept_bytes(self) -> int:
        """What the originals of changed weights take in main memory."""
        return sum(original.nbytes for original in self._originals.values())

    def fit(self, lora: LoraWeights) -> FittedLora:
        """What `lora` changes in this checkpoint; raises `ValueError` with a reason where it does not fit."""
        if lora.file not in self._fitted:
            self._fitted[lora.file] = fit(lora, self._places, self._shapes)
        return self._fitted[lora.file]

    @torch.no_grad()
    def apply(self, wishes: Sequence[Wish], *, device: torch.device = _CPU) -> None:
        """Makes the weights the checkpoint's own with `wishes` and nothing else merged into them.

        Only weights whose wishes changed are touched. Their order does not matter: each change is computed from the
        checkpoint's own weight, and they are added up in float32, on `device`. A wish of strength 0 changes no bit.
        """
        self._fitted = {wish.file: wish.lora for wish in wishes}
        wanted = self._terms(wishes)
        for target in [target for target in self._merged if target not in wanted]:
            self._restore(target)
        for target, changes in wanted.items():
            terms = tuple(term for term, _ in changes)
            if self._merged.get(target) == terms:
                continue
            original = self._originals.get(target)
            if original is None:
                original = self._originals[target] = self._kept(target)
            self._merged[target] = ()  # what is in it is unknown, should merging fail
            self._put(target, _merged(self._dense(target, original, device), changes, device))
            self._merged[target] = terms

    def restore(self) -> None:
        """Takes everything out: each weight is again what was loaded, bit for bit."""
        self.apply(())

    def _terms(self, wishes: Sequence[Wish]) -> dict[Target, list[tuple[_Term, Change]]]:
        """What shall stand in each weight, in an order that depends on the LoRAs alone."""
        wanted: dict[Target, list[tuple[_Term, Change]]] = {}
        for wish in wishes:
            for target, change in wish.lora.changes.items():
                strength = wish.strength(target.component)
                if strength:
                    term = _Term(wish.file, strength, wish.rank)
                    wanted.setdefault(target, []).append((term, change))
        for changes in wanted.values():
            changes.sort(key=lambda pair: (pair[0].file.name, pair[0].strength, pair[0].rank or 0))
        return wanted

    def _packed(self, target: Target) -> LowBitLayer | None:
        return packed_layer(self._modules[target.component], target.parameter)

    def _weight(self, target: Target) -> Tensor:
        return self._modules[target.component].get_parameter(target.parameter)

    def _kept(self, target: Target) -> _Original:
        """A copy in main memory of what the weight is now."""
        layer = self._packed(target)
        if layer is None:
            return self._weight(target).detach().to("cpu", copy=True)
        return layer.packed().to(_CPU, copy=True)

    def _dense(self, target: Target, original: _Original, device: torch.device) -> Tensor:
        if isinstance(original, Tensor):
            return original
        return cast("LowBitLayer", self._packed(target)).widened(original.to(device))

    def _put(self, target: Target, value: _Original) -> None:
        """Makes `value` the weight. Where that lies elsewhere now, what was recorded of calls knows nothing of it."""
        layer = self._packed(target)
        if layer is None:
            self._weight(target).copy_(cast("Tensor", value))
        elif not layer.hold(value):
            set_recorded(self._modules[target.component], wanted=False)

    @torch.no_grad()
    def _restore(self, target: Target) -> None:
        self._put(target, self._originals[target])
        del self._merged[target], self._originals[target]


def _merged(original: Tensor, changes: Sequence[tuple[_Term, Change]], device: torch.device) -> Tensor:
    """`original` with the changes added, float32 on `device`."""
    weight = original.to(device=device, dtype=torch.float32)
    total = weight.clone()
    for term, change in changes:
        tensors = {name: tensor.to(device, torch.float32) for name, tensor in change.parts.tensors.items()}
        parts = Parts(tensors=tensors, alpha=change.parts.alpha, rank=term.rank)
        total += term.strength * change.kind.delta(parts, weight)
    return total


def _module_paths(module: nn.Module) -> Iterator[str]:
    """The paths of all modules that have a weight of their own."""
    return (name.removesuffix(".weight") for name, _ in module.named_parameters() if name.endswith(".weight"))
