"""What the manager works with once torch is there: device, precision, loaded models, attention and encoded prompts."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from webui.checkpoints.families.diffusers_folder import DIFFUSERS
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.load_pipeline import LoadedPipeline, load_pipeline
from webui.checkpoints.load_vae import load_vae
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.preview_decoder import find_preview_decoder, load_preview_decoder
from webui.core.catalogue import VAE_OWN
from webui.core.errors import UnsupportedModel, UserError
from webui.core.extra_networks import take_loras
from webui.core.hires import largest_size, second_pass
from webui.core.requests import DiffusionRequest, Txt2Img, Upscale
from webui.engine.bench import Bench
from webui.engine.conditioning import PromptCache
from webui.engine.masking.foreground import ForegroundFinder, load_foreground_finder
from webui.engine.masking.words import WordMasker, load_word_masker
from webui.engine.networks import Networks, Shelf, joined
from webui.engine.patches import WeightPatches
from webui.engine.phases import Phases
from webui.engine.pipelines import PipelineBench, require_words_alone
from webui.engine.placement import CPU, ModulePart, bring, bytes_on_device, move, place_pipeline
from webui.engine.plan import Need, Place, all_kept_bytes, plan, working_bytes
from webui.engine.previews import Render, by_colours, by_decoder
from webui.engine.residents import FixedPart, Resident, Residents
from webui.engine.upscale import TiledNetwork, Upscaler, UpscalerNetwork, built_in, load_upscaler
from webui.hardware.attention.processor import head_sizes, patched
from webui.hardware.attention.selector import AUTOMATIC, AttentionChoice, select_attention
from webui.hardware.device import choose_device, choose_dtype, choose_pipeline_dtype, describe
from webui.hardware.memory import free_bytes, free_ram_bytes, give_back

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from webui.checkpoints.scan import CheckpointFolder
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

GIB = 2**30
# Where a request says nothing of an upscaler's tiles, they are the upscale tab's own.
TILES = Upscale(image=b"")


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


Held = Prepared | PreparedVae | PreparedPipeline | UpscalerNetwork | WordMasker | ForegroundFinder
Kind = TypeVar("Kind", Prepared, PreparedVae, PreparedPipeline, UpscalerNetwork, WordMasker, ForegroundFinder)
Network = TypeVar("Network", UpscalerNetwork, WordMasker, ForegroundFinder)


class Workshop:
    """Owned by the manager, which lets one thread in at a time.

    Loaded models stay in main memory, and on a graphics card, within what `settings` allow or is free.
    """

    def __init__(self, folder: CheckpointFolder, settings: Callable[[], Settings], hashes: ModelHashes) -> None:
        self._folder = folder
        self._settings = settings
        self._hashes = hashes
        self.device = choose_device()
        self.dtype = choose_dtype(self.device)
        self.device_name = describe(self.device)
        self.residents: Residents[Held] = Residents(self._main_memory_budget, lambda: give_back(self.device))
        self._prompts = PromptCache()
        self._shelf = Shelf(folder.models, hashes, conversions=folder.conversions)
        self._preview_decoder = functools.lru_cache(maxsize=4)(self._load_preview_decoder)
        self._choose = functools.lru_cache(maxsize=32)(self._choose_attention)

    @contextmanager
    def bench(self, request: DiffusionRequest, *, beside_last: bool = False) -> Iterator[Bench]:
        """Everything for one request, with its checkpoint ("" = the default) loaded if need be.

        With `beside_last`, what the bench before it laid out is still in use.

        Inside the block its networks attend by the kernel that the settings name, or by the best one for "auto".
        Raises `CheckpointNotFound`, `UnsupportedModel` or `UserError`; what was loaded before is then still there.
        """
        phases = Phases()
        refine = self._refine(request)
        with phases("load"):
            with self.residents.turn(beside_last=beside_last):
                path, prepared = self._checkpoint(request)
                vae = self._vae(request, path, prepared)
                self._arrange({**prepared.parts, "vae": vae.part}, request)
                attention = self._settings().attention
                for_unet = self._choose(prepared.unet_heads, attention)
                for_vae = self._choose_for_vae(vae.heads, attention)
                networks = self._shelf.use(request, prepared.checkpoint, prepared.patches, device=self.device)
            model_hash = self._hashes.short_hash(path)
            vae_hash = str if vae.file is None else self._hashes.short_hash(vae.file)
        checkpoint = dataclasses.replace(prepared.checkpoint, vae=vae.vae)
        with patched(checkpoint.unet, for_unet), patched(checkpoint.vae, for_vae):
            yield Bench(
                checkpoint=checkpoint,
                weights=str(_identity(path)),
                model_hash=model_hash,
                device=self.device,
                attention=for_unet.name,
                vae_name=vae.name,
                vae_hash=vae_hash,
                embeddings=networks.embeddings,
                patches=networks.text_state,
                network_hashes=networks.infotext,
                notices=networks.notices,
                refine=refine,
                hires=self._hires(request, prepared, networks),
                upscaler=self.enlarger,
                render=self._render(prepared.checkpoint),
                prompts=self._prompts,
                phases=phases,
            )

    def wants_pipeline(self, request: DiffusionRequest) -> bool:
        """Whether the request's checkpoint runs through a pipeline of diffusers'; raises `CheckpointNotFound`."""
        return self._folder.checkpoint(request.checkpoint).family == DIFFUSERS.name

    @contextmanager
    def pipeline_bench(self, request: DiffusionRequest) -> Iterator[PipelineBench]:
        """As `bench`, for a checkpoint that runs through a pipeline of diffusers'; raises as `bench` does."""
        phases = Phases()
        info = self._folder.checkpoint(request.checkpoint)
        require_words_alone(request, info.name)
        path = self._folder.path(info.name)

        def load() -> Resident[Held]:
            loaded = load_pipeline(path, info, dtype=choose_pipeline_dtype(self.device))
            parts = {name: ModulePart.of(module) for name, module in loaded.modules.items()}
            return Resident(name=info.name, parts=parts, model=PreparedPipeline(checkpoint=loaded, parts=parts))

        with phases("load"), self.residents.turn():
            prepared = self._get(PreparedPipeline, _identity(path), load, expected_bytes=self._expected_bytes(path))
            self._arrange_pipeline(prepared, request)
        yield PipelineBench(checkpoint=prepared.checkpoint, model_hash=self._hashes.short_hash(path), phases=phases)

    def _refine(self, request: DiffusionRequest) -> Callable[[], AbstractContextManager[Bench]] | None:
        """What lays out the bench of the request's refiner; None where it has none. Raises `CheckpointNotFound`.

        A refiner of another family than the checkpoint's goes without its LoRAs, for they do not fit it.
        """
        if not request.refiner:
            return None
        base, refiner = self._folder.checkpoint(request.checkpoint), self._folder.checkpoint(request.refiner)
        if base.name == refiner.name:
            return None
        prompt = request.prompt if base.family == refiner.family else take_loras(request.prompt)[0]
        asked = dataclasses.replace(request, checkpoint=refiner.name, refiner="", vae=VAE_OWN, prompt=prompt)
        return lambda: self.bench(asked, beside_last=True)

    def _hires(
        self, request: DiffusionRequest, prepared: Prepared, networks: Networks
    ) -> Callable[[], AbstractContextManager[Bench]] | None:
        """What lays out the bench of hires fix's second pass; None where the first's does.

        That is so where it has the same checkpoint and words. After the block the first pass's `prepared` checkpoint
        has its `networks` again. Raises `CheckpointNotFound`, and `UserError` for a checkpoint of another family.
        """
        if not isinstance(request, Txt2Img) or not request.hires.enabled:
            return None
        base = self._folder.checkpoint(request.checkpoint)
        asked = second_pass(request)
        other = self._folder.checkpoint(asked.checkpoint)
        if other.family != base.family:
            raise UserError(
                f"The hires checkpoint {other.name!r} is of another family ({other.family}) than {base.name!r}"
                f" ({base.family}); choose one of the same family."
            )
        words = (request.prompt, request.negative_prompt)
        if base.name == other.name and words == (asked.prompt, asked.negative_prompt):
            return None

        @contextmanager
        def lay_out() -> Iterator[Bench]:
            with self.bench(asked, beside_last=True) as bench:
                yield dataclasses.replace(
                    bench, network_hashes=lambda: joined(networks.infotext(), bench.network_hashes())
                )
            if base.name == other.name:
                with torch.inference_mode(mode=False):
                    self._shelf.use(request, prepared.checkpoint, prepared.patches, device=self.device)

        return lay_out

    def _render(self, checkpoint: LoadedCheckpoint) -> Render | None:
        """How the checkpoint's forming pictures are shown: by a small decoder where there is one, else by colours."""
        path = find_preview_decoder(self._folder.models, checkpoint.info.name, checkpoint.family)
        if path is not None:
            try:
                return self._preview_decoder(_identity(path))
            except UnsupportedModel as error:
                logger.warning("Previews go without their decoder: %s", error)
        return None if checkpoint.latent_to_rgb is None else by_colours(checkpoint.latent_to_rgb)

    def _load_preview_decoder(self, identity: tuple[Path, int]) -> Render:
        return by_decoder(load_preview_decoder(identity[0], device=self.device, dtype=self.dtype))

    def upscaler(self, name: str) -> UpscalerNetwork:
        """The upscaler network of that name; raises `UpscalerNotFound` or `UnsupportedModel`."""
        path = self._folder.upscaler_path(name)
        return self._network(
            UpscalerNetwork, path, lambda: load_upscaler(path, self.device, conversions=self._folder.conversions)
        )

    def enlarger(self, name: str) -> Upscaler:
        """The filter or network of that name, ready for any picture, in tiles; raises as `upscaler` does."""
        return built_in(name) or TiledNetwork(self.upscaler(name), tile=TILES.tile, overlap=TILES.overlap)

    def word_masker(self, folder: Path) -> WordMasker:
        """The network in `folder` that makes masks from words; raises `UnsupportedModel`."""
        return self._network(WordMasker, folder, lambda: load_word_masker(folder, self.device))

    def foreground_finder(self, path: Path) -> ForegroundFinder:
        """The network in `path` that tells foreground from background; raises `UnsupportedModel`."""
        return self._network(
            ForegroundFinder,
            path,
            lambda: load_foreground_finder(path, self.device, conversions=self._folder.conversions),
        )

    def release_memory(self) -> None:
        """Gives up what is not needed at once, after memory ran out."""
        self.residents.release_others()
        give_back(self.device)

    # --- loading

    def _get(self, kind: type[Kind], key: Hashable, load: Callable[[], Resident[Held]], *, expected_bytes: int) -> Kind:
        model = self.residents.get(key, load, expected_bytes=expected_bytes).model
        if not isinstance(model, kind):
            raise TypeError(f"{key} is held as {type(model).__name__}")
        return model

    def _network(self, kind: type[Network], path: Path, load: Callable[[], Network]) -> Network:
        """A network of its own beside the checkpoints, loaded if need be, and kept like them."""

        def resident() -> Resident[Held]:
            network = load()
            return Resident(name=path.stem, parts={"network": FixedPart(network.weight_bytes)}, model=network)

        with self.residents.turn(beside_last=True):
            return self._get(kind, _identity(path), resident, expected_bytes=_weight_bytes(path))

    def _checkpoint(self, request: DiffusionRequest) -> tuple[Path, Prepared]:
        """The request's checkpoint, and where it lies."""
        info = self._folder.checkpoint(request.checkpoint)
        path = self._folder.path(info.name)
        expected = self._expected_bytes(path)

        def load() -> Resident[Held]:
            loaded = load_checkpoint(
                path, info, dtype=self.dtype, device=self._home(expected), conversions=self._folder.conversions
            )
            parts = _parts(loaded)
            heads = frozenset(head_sizes(loaded.unet))
            prepared = Prepared(checkpoint=loaded, parts=parts, patches=WeightPatches(loaded), unet_heads=heads)
            return Resident(name=info.name, parts=parts, model=prepared)

        return path, self._get(Prepared, _identity(path), load, expected_bytes=expected)

    def _vae(self, request: DiffusionRequest, checkpoint_path: Path, prepared: Prepared) -> PreparedVae:
        """The VAE that request and settings choose for the checkpoint."""
        own = prepared.checkpoint.vae
        path = self._folder.vae_path(request.vae, checkpoint=checkpoint_path, preferred=self._settings().vae)
        if path is None:
            return PreparedVae(vae=own, part=prepared.parts["vae"], heads=frozenset(head_sizes(own)))

        def load() -> Resident[Held]:
            vae = load_vae(
                path,
                prepared.checkpoint,
                dtype=self.dtype,
                device=self._home(path.stat().st_size),
                conversions=self._folder.conversions,
            )
            part = ModulePart.of(vae)
            loaded = PreparedVae(vae=vae, part=part, heads=frozenset(head_sizes(vae)), name=path.name, file=path)
            return Resident(name=path.name, parts={"vae": part}, model=loaded)

        # Checkpoints of one architecture share the module; one that does not fit another is loaded, and refused, anew.
        key = (*_identity(path), prepared.checkpoint.family, str(own.config["block_out_channels"]))
        return self._get(PreparedVae, key, load, expected_bytes=path.stat().st_size)

    def _expected_bytes(self, path: Path) -> int:
        """What the weights at `path` are about to take; files hold numbers of 16 bits."""
        return _weight_bytes(path) * (2 if self.dtype == torch.float32 else 1)

    def _main_memory_budget(self) -> int:
        """What loaded models may take of main memory: the setting, or half of what would be free without them."""
        allowed = self._settings().model_memory_gib
        if allowed:
            return int(allowed * GIB)
        return (free_ram_bytes() + self.residents.bytes_in_main_memory()) // 2

    # --- the graphics card; on the CPU there is only one memory, and nothing moves

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

    def _arrange(self, parts: Mapping[str, ModulePart], request: DiffusionRequest) -> None:
        """Keeps on the device what fits there of `parts`, at the size of `request`; others make room."""
        if self.device != CPU:
            bring(parts, self._places(parts, request), self.device)

    def _arrange_pipeline(self, prepared: PreparedPipeline, request: DiffusionRequest) -> None:
        """Keeps the pipeline on the device if all of it fits there, at the size of `request`; others make room."""
        if self.device != CPU:
            places = self._places(prepared.parts, request)
            whole = all(place is Place.KEPT for place in places.values())
            place_pipeline(prepared.checkpoint.pipeline, self.device, whole=whole)

    def _places(self, parts: Mapping[str, ModulePart], request: DiffusionRequest) -> dict[str, Place]:
        """Where each of `parts` goes, after others made room."""
        pixels = largest_size(request).area
        needs = {
            name: Need(
                weight_bytes=part.weight_bytes,
                working_bytes=working_bytes(name, pixels=pixels, batch_size=request.batch_size),
            )
            for name, part in parts.items()
        }
        own = parts.values()
        self._make_room(all_kept_bytes(needs) - bytes_on_device(own), keep=own)
        places = plan(needs, free_bytes=self._free_on_device() + bytes_on_device(own))
        if any(place is not Place.KEPT for place in places.values()):
            told = ", ".join(f"{name} {place.value}" for name, place in places.items())
            logger.info("Not everything fits on %s: %s", self.device_name, told)
        return places

    def _make_room(self, wanted_bytes: int, *, keep: Iterable[ModulePart] = ()) -> None:
        """Moves models into main memory, the least recently used first, until `wanted_bytes` are free on the device."""
        kept = {id(part.module) for part in keep}
        for resident in self.residents.all():
            if self._free_on_device() >= wanted_bytes:
                return
            for part in _module_parts(resident):
                if id(part.module) not in kept:
                    move(part.module, CPU)
            give_back(self.device)

    # --- attention

    def _choose_attention(self, sizes: frozenset[int], wish: str) -> AttentionChoice:
        return select_attention(self.device, self.dtype, sizes, wish)

    def _choose_for_vae(self, sizes: frozenset[int], wish: str) -> AttentionChoice:
        """The wish where it works: a VAE's one wide head is more than some kernels take, and no reason to fail."""
        try:
            return self._choose(sizes, wish)
        except UserError as error:
            logger.info("The VAE takes its own attention: %s", error)
            return self._choose(sizes, AUTOMATIC)


def _parts(checkpoint: LoadedCheckpoint) -> dict[str, ModulePart]:
    """Its components, each of which may be in another place."""
    encoders = {f"text_encoder_{number}": each.module for number, each in enumerate(checkpoint.text_encoders, start=1)}
    modules = {**encoders, "unet": checkpoint.unet, "vae": checkpoint.vae}
    return {name: ModulePart.of(module) for name, module in modules.items()}


def _module_parts(resident: Resident[Held]) -> list[ModulePart]:
    return [part for part in resident.parts.values() if isinstance(part, ModulePart)]


def _identity(path: Path) -> tuple[Path, int]:
    """Tells a file from another that took its name later."""
    return path, path.stat().st_mtime_ns


def _weight_bytes(path: Path) -> int:
    """The size of a single file, or of a diffusers folder's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
