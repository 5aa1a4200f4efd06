"""Which models are loaded, in which precision, and where: in main memory or on a graphics card.

What stays is decided by `residents`, what goes where on a card by `plan`; this module carries both out.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
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
from webui.core.hires import largest_size
from webui.core.ports import CheckpointInfo
from webui.core.requests import DiffusionRequest
from webui.engine.bench import VAE_TILE
from webui.engine.faces import FaceDetector, FaceNetwork
from webui.engine.ladder import Economy, Rung
from webui.engine.masking.foreground import ForegroundFinder
from webui.engine.masking.words import WordMasker
from webui.engine.patches import WeightPatches
from webui.engine.pipeline_placement import set_tiled
from webui.engine.placement import CPU, ModulePart, bring, bytes_on_device, move
from webui.engine.plan import (
    Bound,
    Need,
    Place,
    all_kept_bytes,
    in_words,
    needs_tiles,
    plan,
    weights_in_words,
    working_bytes,
)
from webui.engine.residents import FixedPart, Resident, Residents
from webui.engine.upscale import UpscalerNetwork
from webui.hardware.attention.processor import head_sizes
from webui.hardware.device import (
    choose_device,
    choose_dtype,
    choose_picture_dtype,
    choose_pipeline_dtype,
    describe,
    set_fast_arithmetic,
    wider_dtype,
)
from webui.hardware.gguf_blocks import KINDS
from webui.hardware.graphs import recorded_bytes, set_recorded
from webui.hardware.low_bits import FULL, why_not
from webui.hardware.memory import free_bytes, free_ram_bytes, give_back, limit

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from webui.checkpoints.scan import CheckpointFolder
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

GIB = 2**30


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
        self.device = choose_device()
        self.device_name = describe(self.device)
        self.residents: Residents[Held] = Residents(self._main_memory_budget, lambda: give_back(self.device))
        self._unet_dtypes: dict[Hashable, torch.dtype] = {}  # of the UNets that overflowed in the usual one

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
                device=self._home(expected),
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
                device=self._home(path.stat().st_size),
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

    def memory_in_words(self, parts: Mapping[str, ModulePart], places: Mapping[str, Place]) -> str:
        """Where `parts` go, and in how few bits they lie; "" where there is one memory and all weights are full."""
        told = [in_words(places, _weight_bytes_of(parts))] if places else []
        packed = {name: (part.kind, part.weight_bytes) for name, part in parts.items() if part.kind != FULL}
        if packed:
            told.append(weights_in_words(packed))
        return "; ".join(told)

    @property
    def offloads(self) -> bool:
        """Whether the device has a memory of its own, which weights can leave."""
        return self.device != CPU

    def release_memory(self) -> None:
        """Gives up what is not needed at once, after memory ran out."""
        self.residents.release_others()
        for resident in self.residents.all():
            for part in _module_parts(resident):
                set_recorded(part.module, wanted=False)
        give_back(self.device)

    def tell_torch(self) -> None:
        """Has torch itself hold to what the settings allow of the card, and of its arithmetic."""
        set_fast_arithmetic(self.device, wanted=self._settings().fast_arithmetic)
        limit(self.device, int(self._settings().video_memory_gib * GIB))

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

    # --- the graphics card; on the CPU there is only one memory, and nothing moves

    def arrange(
        self, parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy
    ) -> tuple[dict[str, Place], Economy]:
        """Keeps on the device what fits there of `parts`, at the size of `request`; others make room.

        Returns where each part goes, and `economy` with what is needed beside that.
        """
        if self.device == CPU:
            return {}, economy
        places, economy = self._places(parts, request, economy)
        bring(parts, places, self.device)
        return places, economy

    def arrange_pipeline(
        self, prepared: PreparedPipeline, request: DiffusionRequest, economy: Economy
    ) -> dict[str, Place]:
        """As `arrange`, for the components of a pipeline.

        Its VAE works in tiles where it has to, and where the last measure is taken: nothing tells in which of its
        phases a pipeline ran out of memory.
        """
        places, economy = self.arrange(prepared.parts, request, economy)
        tile = VAE_TILE if {Rung.TILED, Rung.OFFLOAD} & economy.rungs else None
        set_tiled((part.module for part in prepared.parts.values()), tile=tile)
        return places

    def has_room_to_record(self, parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy) -> bool:
        """Whether recorded calls of the UNet, which is on the device, leave all `parts` room to work.

        Recordings keep for themselves what the UNet works with. Those that there are count as room for new ones.
        """
        needs = _needs(parts, request, economy)
        others = max(
            need.working_bytes + (need.weight_bytes if parts[name].in_main_memory else 0)
            for name, need in needs.items()
        )
        room = self._free_on_device() + recorded_bytes(parts["unet"].module)
        return needs["unet"].working_bytes + others <= room

    def _free_on_device(self) -> int:
        """What models and their work may still take there: what is free, within the setting."""
        held = sum(bytes_on_device(_module_parts(resident)) for resident in self.residents.all())
        allowed = self._settings().video_memory_gib
        free = free_bytes(self.device)
        return min(free, int(allowed * GIB) - held) if allowed else free

    def _home(self, expected_bytes: int) -> torch.device:
        """Where to load weights of that size to: the device, if it has room for them or can make it."""
        if self.device == CPU:
            return CPU
        self._make_room(expected_bytes)
        return self.device if expected_bytes <= self._free_on_device() else CPU

    def _places(
        self, parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy
    ) -> tuple[dict[str, Place], Economy]:
        """Where each of `parts` goes, after others made room, and `economy` with tiles if the VAE needs them there."""
        needs = _needs(parts, request, economy)
        own = parts.values()
        self._make_room(all_kept_bytes(needs) - bytes_on_device(own), keep=own)
        free = self._free_on_device() + bytes_on_device(own)
        if "vae" in needs and needs_tiles(needs["vae"], free_bytes=free):
            economy = economy.also(Rung.TILED)
            needs = _needs(parts, request, economy)
        bound = Bound.LOWVRAM if Rung.OFFLOAD in economy else Bound(self._settings().video_memory_use)
        places = plan(needs, free_bytes=free, bound=bound)
        if any(place is not Place.KEPT for place in places.values()):
            logger.info("Not everything stays on %s: %s", self.device_name, in_words(places, _weight_bytes_of(parts)))
        return places, economy

    def _make_room(self, wanted_bytes: int, *, keep: Iterable[ModulePart] = ()) -> None:
        """Moves models into main memory, the least recently used first, until `wanted_bytes` are free on the device.

        If that is not enough, recorded calls are given up of those to `keep`.
        """
        kept = {id(part.module): part.module for part in keep}
        for resident in self.residents.all():
            if self._free_on_device() >= wanted_bytes:
                return
            for part in _module_parts(resident):
                if id(part.module) not in kept:
                    move(part.module, CPU)
            give_back(self.device)
        recorded = [module for module in kept.values() if recorded_bytes(module)]
        if recorded and self._free_on_device() < wanted_bytes:
            for module in recorded:
                set_recorded(module, wanted=False)
            give_back(self.device)


def _needs(parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy) -> dict[str, Need]:
    """What each of `parts` takes on the device at the size of `request`, its VAE in tiles where `economy` says so."""
    pixels = largest_size(request).area
    seen = {"vae": min(pixels, VAE_TILE**2)} if Rung.TILED in economy else {}
    return {
        name: Need(
            weight_bytes=part.weight_bytes,
            working_bytes=working_bytes(name, pixels=seen.get(name, pixels), batch_size=request.batch_size),
        )
        for name, part in parts.items()
    }


def _parts(checkpoint: LoadedCheckpoint) -> dict[str, ModulePart]:
    """Its components, each of which may be in another place."""
    encoders = {f"text_encoder_{number}": each.module for number, each in enumerate(checkpoint.text_encoders, start=1)}
    modules = {**encoders, "unet": checkpoint.unet, "vae": checkpoint.vae}
    return {name: ModulePart.of(module) for name, module in modules.items()}


def _weight_bytes_of(parts: Mapping[str, ModulePart]) -> dict[str, int]:
    return {name: part.weight_bytes for name, part in parts.items()}


def _module_parts(resident: Resident[Held]) -> list[ModulePart]:
    return [part for part in resident.parts.values() if isinstance(part, ModulePart)]


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
