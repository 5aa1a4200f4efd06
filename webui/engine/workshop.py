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
from webui.core.requests import DiffusionRequest, FaceRestoration, Txt2Img, Upscale
from webui.engine.bench import VAE_TILE, Bench
from webui.engine.conditioning import PromptCache
from webui.engine.faces import FaceDetector, FaceNetwork, FaceRestorer, load_face_detector, load_face_network
from webui.engine.faces.mtcnn import WEIGHTS as FACE_DETECTOR
from webui.engine.img2img import walk_of
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.masking.foreground import ForegroundFinder, load_foreground_finder
from webui.engine.masking.words import WordMasker, load_word_masker
from webui.engine.networks import Networks, Shelf, joined
from webui.engine.passes import make_pass
from webui.engine.patches import WeightPatches
from webui.engine.phases import Phases
from webui.engine.pipelines import PipelineBench, require_words_alone
from webui.engine.placement import CPU, ModulePart, bring, bytes_on_device, move, place_pipeline
from webui.engine.plan import Bound, Need, Place, all_kept_bytes, in_words, needs_tiles, plan, working_bytes
from webui.engine.previews import Render, by_colours, by_decoder
from webui.engine.residents import FixedPart, Resident, Residents
from webui.engine.upscale import TiledNetwork, Upscaler, UpscalerNetwork, built_in, load_upscaler
from webui.engine.upscale.diffusion import DiffusionEnlarger
from webui.hardware.attention.chunked import CHUNKED
from webui.hardware.attention.processor import head_sizes, patched
from webui.hardware.attention.remembered import RememberedChoices
from webui.hardware.attention.selector import AUTOMATIC, AttentionChoice, AttentionSelector
from webui.hardware.device import choose_device, choose_dtype, choose_pipeline_dtype, describe, wider_dtype
from webui.hardware.memory import free_bytes, free_ram_bytes, give_back, limit

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from webui.checkpoints.scan import CheckpointFolder
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

GIB = 2**30
LATENT_PIXELS = 8
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


SideNetwork = UpscalerNetwork | FaceNetwork | FaceDetector | WordMasker | ForegroundFinder
Held = Prepared | PreparedVae | PreparedPipeline | SideNetwork
Kind = TypeVar("Kind", bound=Held)
Network = TypeVar("Network", bound=SideNetwork)


class Workshop:
    """Owned by the manager, which lets one thread in at a time.

    Loaded models stay in main memory, and on a graphics card, within what `settings` allow or is free. The choices of
    attention are remembered in `attention_file`, if one is given.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        settings: Callable[[], Settings],
        hashes: ModelHashes,
        attention_file: Path | None = None,
    ) -> None:
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
        self._attention = AttentionSelector(RememberedChoices(attention_file))
        self._unet_dtypes: dict[Hashable, torch.dtype] = {}  # of the UNets that overflowed in the usual one

    @contextmanager
    def bench(
        self,
        request: DiffusionRequest,
        *,
        beside_last: bool = False,
        economy: Economy = NOTHING_SAVED,
        phases: Phases | None = None,
    ) -> Iterator[Bench]:
        """Everything for one request, with its checkpoint ("" = the default) loaded if need be.

        With `beside_last`, what the bench before it laid out is still in use. `economy` is what to give up for memory,
        and `phases` counts the time that loading takes.

        Inside the block its networks attend by the kernel that the settings name, or by the best one for "auto".
        Raises `CheckpointNotFound`, `UnsupportedModel` or `UserError`; what was loaded before is then still there.
        """
        phases = Phases() if phases is None else phases
        limit(self.device, int(self._settings().video_memory_gib * GIB))
        refine = self._refine(request, economy)
        with phases("load"):
            with self.residents.turn(beside_last=beside_last):
                path, prepared = self._checkpoint(request)
                vae = self._vae(request, path, prepared)
                places, economy = self._arrange({**prepared.parts, "vae": vae.part}, request, economy)
                wish = CHUNKED.name if Rung.CHUNKED in economy else self._settings().attention
                for_unet = self._choose(prepared.unet_heads, (prepared.checkpoint.unet.dtype,), request, wish)
                for_vae = self._choose_for_vae(vae.heads, request, wish)
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
                hires=self._hires(request, prepared, networks, economy),
                upscaler=self.enlarger,
                render=self._render(prepared.checkpoint),
                economy=economy,
                unet_place=places.get("unet", Place.VISITING),
                memory_plan=in_words(places) if places else "",
                prompts=self._prompts,
                phases=phases,
            )

    def wants_pipeline(self, request: DiffusionRequest) -> bool:
        """Whether the request's checkpoint runs through a pipeline of diffusers'; raises `CheckpointNotFound`."""
        return self._folder.checkpoint(request.checkpoint).family == DIFFUSERS.name

    @contextmanager
    def pipeline_bench(
        self, request: DiffusionRequest, *, economy: Economy = NOTHING_SAVED, phases: Phases | None = None
    ) -> Iterator[PipelineBench]:
        """As `bench`, for a checkpoint that runs through a pipeline of diffusers'; raises as `bench` does.

        Of an `economy` it knows the weights that wait in main memory.
        """
        phases = Phases() if phases is None else phases
        limit(self.device, int(self._settings().video_memory_gib * GIB))
        info = self._folder.checkpoint(request.checkpoint)
        require_words_alone(request, info.name)
        path = self._folder.path(info.name)

        def load() -> Resident[Held]:
            loaded = load_pipeline(path, info, dtype=choose_pipeline_dtype(self.device))
            parts = {name: ModulePart.of(module) for name, module in loaded.modules.items()}
            return Resident(name=info.name, parts=parts, model=PreparedPipeline(checkpoint=loaded, parts=parts))

        with phases("load"), self.residents.turn():
            prepared = self._get(PreparedPipeline, _identity(path), load, expected_bytes=self._expected_bytes(path))
            self._arrange_pipeline(prepared, request, economy)
        yield PipelineBench(checkpoint=prepared.checkpoint, model_hash=self._hashes.short_hash(path), phases=phases)

    def _refine(
        self, request: DiffusionRequest, economy: Economy
    ) -> Callable[[], AbstractContextManager[Bench]] | None:
        """What lays out the bench of the request's refiner; None where it has none. Raises `CheckpointNotFound`.

        A refiner of another family than the checkpoint's goes without its LoRAs, for they do not fit it. With hires fix
        it belongs to the second pass.
        """
        if not request.refiner:
            return None
        if isinstance(request, Txt2Img) and request.hires.enabled:
            request = second_pass(request)
        base, refiner = self._folder.checkpoint(request.checkpoint), self._folder.checkpoint(request.refiner)
        if base.name == refiner.name:
            return None
        prompt = request.prompt if base.family == refiner.family else take_loras(request.prompt)[0]
        asked = dataclasses.replace(request, checkpoint=refiner.name, refiner="", vae=VAE_OWN, prompt=prompt)
        return lambda: self.bench(asked, beside_last=True, economy=economy)

    def _hires(
        self, request: DiffusionRequest, prepared: Prepared, networks: Networks, economy: Economy
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
            with self.bench(asked, beside_last=True, economy=economy) as bench:
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

    def enlarger(self, name: str, wish: Upscale = TILES) -> Upscaler:
        """The filter, network or diffusion model of that name, ready for any picture, in the tiles of `wish`.

        Raises as `upscaler` does.
        """
        found = built_in(name)
        if found is not None:
            return found
        if not self._folder.upscales_by_diffusion(name):
            return TiledNetwork(self.upscaler(name), tile=wish.tile, overlap=wish.overlap)
        told = wish.diffusion
        asked = Txt2Img(
            prompt=told.prompt,
            negative_prompt=told.negative_prompt,
            checkpoint=name,
            vae=VAE_OWN,
            steps=told.steps,
            # Its latents are as large as the small picture, of which the UNet sees a tile.
            width=wish.tile * LATENT_PIXELS,
            height=wish.tile * LATENT_PIXELS,
        )
        return DiffusionEnlarger(
            lambda: self.bench(asked, beside_last=True),
            lambda bench: make_pass(asked, bench, walk_of(asked)).words(),
            told,
            tile=wish.tile,
            overlap=wish.overlap,
        )

    def face_restorer(self, options: FaceRestoration) -> FaceRestorer | None:
        """What restores the faces of an RGB picture, and counts them; None where `options` name no model.

        Raises `ModelNotFound` or `UnsupportedModel`.
        """
        if not options.model:
            return None
        path = self._folder.face_restorer_path(options.model)
        network = self._network(
            FaceNetwork, path, lambda: load_face_network(path, self.device, conversions=self._folder.conversions)
        )
        detector = self._network(FaceDetector, FACE_DETECTOR, lambda: load_face_detector(self.device))
        return FaceRestorer(network, detector, options)

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

    def widen_unet(self, request: DiffusionRequest) -> str:
        """Has the UNet of the request's checkpoint in the next wider precision from now on.

        Returns the precision's name, "" where there is none wider. It is loaded anew, for bits that were rounded away
        do not come back.
        """
        path = self._folder.path(self._folder.checkpoint(request.checkpoint).name)
        wider = wider_dtype(self._unet_dtypes.get(_identity(path), self.dtype), self.device)
        if wider is None:
            return ""
        self._unet_dtypes[_identity(path)] = wider
        return str(wider).removeprefix("torch.")

    @property
    def offloads(self) -> bool:
        """Whether the device has a memory of its own, which weights can leave."""
        return self.device != CPU

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
        unet_dtype = self._unet_dtypes.get(_identity(path), self.dtype)

        def load() -> Resident[Held]:
            loaded = load_checkpoint(
                path,
                info,
                dtype=self.dtype,
                device=self._home(expected),
                conversions=self._folder.conversions,
                unet_dtype=unet_dtype,
            )
            parts = _parts(loaded)
            heads = frozenset(head_sizes(loaded.unet))
            prepared = Prepared(checkpoint=loaded, parts=parts, patches=WeightPatches(loaded), unet_heads=heads)
            return Resident(name=info.name, parts=parts, model=prepared)

        return path, self._get(Prepared, (*_identity(path), unet_dtype), load, expected_bytes=expected)

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

    def _arrange(
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

    def _arrange_pipeline(self, prepared: PreparedPipeline, request: DiffusionRequest, economy: Economy) -> None:
        """Keeps the pipeline on the device if all of it fits there, at the size of `request`; others make room."""
        if self.device != CPU:
            places, _ = self._places(prepared.parts, request, economy)
            whole = all(place is Place.KEPT for place in places.values())
            place_pipeline(prepared.checkpoint.pipeline, self.device, whole=whole)

    def _places(
        self, parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy
    ) -> tuple[dict[str, Place], Economy]:
        """Where each of `parts` goes, after others made room, and `economy` with tiles if the VAE needs them there."""
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
        free = self._free_on_device() + bytes_on_device(own)
        if "vae" in needs and needs_tiles(needs["vae"], free_bytes=free):
            economy = economy.also(Rung.TILED)
        if "vae" in needs and Rung.TILED in economy:
            work = working_bytes("vae", pixels=min(pixels, VAE_TILE**2), batch_size=1)
            needs["vae"] = Need(weight_bytes=needs["vae"].weight_bytes, working_bytes=work)
        bound = Bound.LOWVRAM if Rung.OFFLOAD in economy else Bound(self._settings().video_memory_use)
        places = plan(needs, free_bytes=free, bound=bound)
        if any(place is not Place.KEPT for place in places.values()):
            logger.info("Not everything stays on %s: %s", self.device_name, in_words(places))
        return places, economy

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

    def _choose(
        self, sizes: frozenset[int], dtypes: tuple[torch.dtype, ...], request: DiffusionRequest, wish: str
    ) -> AttentionChoice:
        length = largest_size(request).area // LATENT_PIXELS**2
        return self._attention.select(self.device, dtypes, sizes, length=length, override=wish)

    def _choose_for_vae(self, sizes: frozenset[int], request: DiffusionRequest, wish: str) -> AttentionChoice:
        """The wish where it works: a VAE's one wide head is more than some kernels take, and no reason to fail.

        It must work in full precision as well, for a VAE that overflows in half goes on in that.
        """
        dtypes = tuple(dict.fromkeys((self.dtype, torch.float32)))
        try:
            return self._choose(sizes, dtypes, request, wish)
        except UserError as error:
            logger.info("The VAE takes its own attention: %s", error)
            return self._choose(sizes, dtypes, request, AUTOMATIC)


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
