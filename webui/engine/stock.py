"""Which models are loaded, and in which precision.

What stays is decided by `residents`; what of it lies on a graphics card is `card`'s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from webui.checkpoints.completion import complete_header
from webui.checkpoints.containers.base import TensorHeader
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.load_pipeline import LoadedPipeline, load_pipeline
from webui.checkpoints.load_vae import load_vae
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.single_pipeline_parts import pipeline_files
from webui.core.errors import UserError
from webui.core.ports import CheckpointInfo
from webui.core.requests import DiffusionRequest
from webui.engine.card import GIB, Card
from webui.engine.faces import FaceDetector, FaceNetwork
from webui.engine.masking.foreground import ForegroundFinder
from webui.engine.masking.words import WordMasker
from webui.engine.patches import WeightPatches
from webui.engine.placement import ModulePart
from webui.engine.residents import FixedPart, Resident, Residents
from webui.engine.upscale import UpscalerNetwork
from webui.hardware.attention.processor import head_sizes
from webui.hardware.device import (
    choose_dtype,
    choose_picture_dtype,
    choose_pipeline_dtype,
    wider_dtype,
)
from webui.hardware.gguf_blocks import KINDS
from webui.hardware.low_bits import FULL, why_not
from webui.hardware.memory import free_ram_bytes, give_back

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from webui.checkpoints.scan import CheckpointFolder
    from webui.settings.schema import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A loaded checkpoint, its parts, what LoRAs are merged into it, and the widths of its UNet's attention heads.

    Those take a long walk to find.
    """

    checkpoint: LoadedCheckpoint
    parts: Mapping[str, ModulePart]
    patches: WeightPatches
    unet_heads: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedVae:
    """The VAE to work with: the checkpoint's own, whose `name` is "", or one from a file of its own."""

    vae: AutoencoderKL
    part: ModulePart
    heads: frozenset[int]
    name: str = ""
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPipeline:
    """A loaded pipeline of diffusers', and its parts."""

    checkpoint: LoadedPipeline
    parts: Mapping[str, ModulePart]


SideNetwork = UpscalerNetwork | FaceNetwork | FaceDetector | WordMasker | ForegroundFinder
Held = Prepared | PreparedVae | PreparedPipeline | SideNetwork
Kind = TypeVar("Kind", bound=Held)
Network = TypeVar("Network", bound=SideNetwork)


class Stock:
    """Owned by the workshop, and so used by one thread at a time.

    Loaded models stay in main memory, and on a graphics card, within what `settings` allow or is free.
    """

    def __init__(self, folder: CheckpointFolder, settings: Callable[[], Settings]) -> None:
        self._folder = folder
        self._settings = settings
        self.residents: Residents[Held] = Residents(self._main_memory_budget, lambda: give_back(self.device))
        self.card = Card(self.residents, settings)
        self._unet_dtypes: dict[Hashable, torch.dtype] = {}  # of the UNets that overflowed in the usual one

    @property
    def device(self) -> torch.device:
        """What computes."""
        return self.card.device

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in, by the settings; raises `UserError` where the device lacks it."""
        return choose_dtype(self.device, self._settings().precision)

    @property
    def picture_dtype(self) -> torch.dtype:
        """What networks from pixels to pixels compute in; raises as `dtype` does."""
        return choose_picture_dtype(self.device, self._settings().precision)

    def checkpoint(self, request: DiffusionRequest) -> tuple[Path, Prepared]:
        """The request's checkpoint, and where it lies."""
        info = self._folder.checkpoint(request.checkpoint)
        path = self._folder.path(info.name)
        dtype = self.dtype
        unet_dtype = self._unet_dtypes.get((identity(path), dtype), dtype)
        weights = self._weights()
        expected = self._expected_bytes(path, weights)

        def load() -> Resident[Held]:
            loaded = load_checkpoint(
                path,
                info,
                dtype=dtype,
                device=self.card.home(expected),
                conversions=self._folder.conversions,
                unet_dtype=unet_dtype,
                weights=weights,
            )
            parts = _parts(loaded)
            heads = frozenset(head_sizes(loaded.unet))
            prepared = Prepared(checkpoint=loaded, parts=parts, patches=WeightPatches(loaded), unet_heads=heads)
            beside = {} if loaded.depth is None else {"depth_estimator": ModulePart.of(loaded.depth)}
            return Resident(name=info.name, parts={**parts, **beside}, model=prepared)

        return path, self._get(Prepared, (*identity(path), dtype, unet_dtype, weights), load, expected_bytes=expected)

    def vae(self, request: DiffusionRequest, checkpoint_path: Path, prepared: Prepared) -> PreparedVae:
        """The VAE that request and settings choose for the checkpoint."""
        own, dtype = prepared.checkpoint.vae, self.dtype
        path = self._folder.vae_path(request.vae, checkpoint=checkpoint_path, preferred=self._settings().vae)
        if path is None:
            return PreparedVae(vae=own, part=prepared.parts["vae"], heads=frozenset(head_sizes(own)))

        def load() -> Resident[Held]:
            vae = load_vae(
                path,
                prepared.checkpoint,
                dtype=dtype,
                device=self.card.home(path.stat().st_size),
                conversions=self._folder.conversions,
            )
            part = ModulePart.of(vae)
            loaded = PreparedVae(vae=vae, part=part, heads=frozenset(head_sizes(vae)), name=path.name, file=path)
            return Resident(name=path.name, parts={"vae": part}, model=loaded)

        # Checkpoints of one architecture share the module; one that does not fit another is loaded, and refused, anew.
        key = (*identity(path), dtype, prepared.checkpoint.family, str(own.config["block_out_channels"]))
        return self._get(PreparedVae, key, load, expected_bytes=path.stat().st_size)

    def pipeline(self, path: Path, info: CheckpointInfo) -> PreparedPipeline:
        """The pipeline of diffusers' in the folder or file `path`, loaded if need be."""
        weights = self._weights()
        dtype = choose_pipeline_dtype(self.device, self._settings().precision)

        def load() -> Resident[Held]:
            loaded = load_pipeline(
                path,
                info,
                dtype=dtype,
                models=self._folder.models,
                conversions=self._folder.conversions,
                weights=weights,
            )
            parts = {name: ModulePart.of(module) for name, module in loaded.modules.items()}
            return Resident(name=info.name, parts=parts, model=PreparedPipeline(checkpoint=loaded, parts=parts))

        files = pipeline_files(path, self._folder.models)
        key = (*map(identity, files), dtype, weights)
        expected = sum(self._expected_bytes(file, weights) for file in files)
        return self._get(PreparedPipeline, key, load, expected_bytes=expected)

    def network(self, kind: type[Network], path: Path, load: Callable[[], Network]) -> Network:
        """A network of its own beside the checkpoints, loaded if need be, and kept like them."""

        def resident() -> Resident[Held]:
            network = load()
            return Resident(name=path.stem, parts={"network": FixedPart(network.weight_bytes)}, model=network)

        with self.residents.turn(beside_last=True):
            return self._get(kind, (*identity(path), self.picture_dtype), resident, expected_bytes=_weight_bytes(path))

    def widen_unet(self, request: DiffusionRequest) -> str:
        """Has the UNet of the request's checkpoint in the next wider precision from now on.

        Returns the precision's name, "" where there is none wider. It is loaded anew, for bits that were rounded away
        do not come back.
        """
        path = self._folder.path(self._folder.checkpoint(request.checkpoint).name)
        file = (identity(path), self.dtype)
        wider = wider_dtype(self._unet_dtypes.get(file, self.dtype), self.device)
        if wider is None:
            return ""
        self._unet_dtypes[file] = wider
        return str(wider).removeprefix("torch.")

    def _weights(self) -> str:
        """The format that the settings name for networks' weights; raises `UserError` where the device lacks it."""
        weights = self._settings().weights
        refused = why_not(weights, self.device)
        if refused:
            raise UserError(refused)
        return weights

    def _get(self, kind: type[Kind], key: Hashable, load: Callable[[], Resident[Held]], *, expected_bytes: int) -> Kind:
        model = self.residents.get(key, load, expected_bytes=expected_bytes).model
        if not isinstance(model, kind):
            raise TypeError(f"{key} is held as {type(model).__name__}")
        return model

    def _expected_bytes(self, path: Path, weights: str) -> int:
        """What the weights at `path` are about to take, at most; files hold numbers of 16 bits, GGUF's may stay so."""
        if path.suffix.lower() == ".gguf":
            return _gguf_bytes(identity(path), stays=weights == FULL, number_bytes=self.dtype.itemsize)
        return _weight_bytes(path) * (2 if self.dtype == torch.float32 else 1)

    def _main_memory_budget(self) -> int:
        """What loaded models may take of main memory: the setting, or half of what would be free without them."""
        allowed = self._settings().model_memory_gib
        if allowed:
            return int(allowed * GIB)
        return (free_ram_bytes() + self.residents.bytes_in_main_memory()) // 2


def _parts(checkpoint: LoadedCheckpoint) -> dict[str, ModulePart]:
    """Its components, each of which may be in another place."""
    encoders = {f"text_encoder_{number}": each.module for number, each in enumerate(checkpoint.text_encoders, start=1)}
    modules = {**encoders, "unet": checkpoint.unet, "vae": checkpoint.vae}
    return {name: ModulePart.of(module) for name, module in modules.items()}


def identity(path: Path) -> tuple[Path, int]:
    """Tells a file from another that took its name later."""
    return path, path.stat().st_mtime_ns


def _weight_bytes(path: Path) -> int:
    """The size of a single file, or of a diffusers folder's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


@functools.lru_cache(maxsize=16)
def _gguf_bytes(file: tuple[Path, int], *, stays: bool, number_bytes: int) -> int:
    """What the weights of a packed file and those that it borrows take, its blocks as they are where it `stays` so."""

    def taken(tensor: TensorHeader) -> float:
        kind = KINDS.get(tensor.dtype) if stays else None
        return math.prod(tensor.shape) * (number_bytes if kind is None else kind.bytes / kind.numbers)

    return int(sum(map(taken, complete_header(file[0]).tensors.values())))
