"""What the manager works with once torch is there: benches, laid out from the stock of loaded models.

Owns the choice of attention, encoded prompts, LoRAs on the shelf and preview decoders; models and memory are `stock`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from webui.checkpoints.families.diffusers_folder import DIFFUSERS
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.load_pipeline import LoadedPipeline
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.preview_decoder import find_preview_decoder, load_preview_decoder
from webui.core.catalogue import VAE_OWN
from webui.core.errors import UnsupportedModel, UserError
from webui.core.extra_networks import take_loras
from webui.core.hires import largest_size, second_pass
from webui.core.requests import DiffusionRequest, Extras, FaceRestoration, Txt2Img, Upscale
from webui.engine.bench import Bench
from webui.engine.conditioning import PromptCache
from webui.engine.faces import FaceDetector, FaceNetwork, FaceRestorer, load_face_detector, load_face_network
from webui.engine.faces.mtcnn import WEIGHTS as FACE_DETECTOR
from webui.engine.img2img import walk_of
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.masking.foreground import ForegroundFinder, load_foreground_finder
from webui.engine.masking.words import WordMasker, load_word_masker
from webui.engine.networks import Networks, Shelf, joined
from webui.engine.passes import make_pass
from webui.engine.phases import Phases
from webui.engine.pipelines import PipelineBench, require_words_alone
from webui.engine.plan import Place
from webui.engine.previews import Render, by_colours, by_decoder
from webui.engine.stock import Prepared, Stock, identity
from webui.engine.upscale import TiledNetwork, Upscaler, UpscalerNetwork, built_in, load_upscaler
from webui.engine.upscale.diffusion import DiffusionEnlarger
from webui.hardware.attention.chunked import CHUNKED
from webui.hardware.attention.fusion import set_fused
from webui.hardware.attention.processor import patched
from webui.hardware.attention.remembered import RememberedChoices
from webui.hardware.attention.selector import AUTOMATIC, AttentionChoice, AttentionSelector
from webui.hardware.compilation import is_compiled, set_compiled, use_folder, why_not
from webui.hardware.graphs import set_recorded
from webui.hardware.layout import choose_layout, lay

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from webui.checkpoints.scan import CheckpointFolder
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

LATENT_PIXELS = 8
# Where a request says nothing of an upscaler's tiles, they are the upscale tab's own.
TILES = Upscale(image=b"")
COMPILING = "The network is compiled: the first picture of each size takes some minutes, the next ones are faster."


class Workshop:
    """Owned by the manager, which lets one thread in at a time.

    The choices of attention and layout are remembered in `attention_file`, if one is given; compiled code lies beside
    it.
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
        self.stock = Stock(folder, settings)
        self._prompts = PromptCache()
        self._shelf = Shelf(folder.models, hashes, conversions=folder.conversions)
        self._preview_decoder = functools.lru_cache(maxsize=4)(self._load_preview_decoder)
        self._remembered = RememberedChoices(attention_file)
        self._attention = AttentionSelector(self._remembered)
        if attention_file is not None:
            use_folder(attention_file.parent / "compiled")

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
        self.stock.card.tell_torch()
        refine = self._refine(request, economy)
        with phases("load"):
            with self.stock.residents.turn(beside_last=beside_last):
                path, prepared = self.stock.checkpoint(request)
                vae = self.stock.vae(request, path, prepared)
                parts = {**prepared.parts, "vae": vae.part}
                places, economy = self.stock.card.arrange(parts, request, economy)
                wish = CHUNKED.name if Rung.CHUNKED in economy else self._settings().attention
                for_unet = self._choose(prepared.unet_heads, (prepared.checkpoint.unet.dtype,), request, wish)
                for_vae = self._choose_for_vae(vae.heads, request, wish)
                networks = self._shelf.use(request, prepared.checkpoint, prepared.patches, device=self.stock.device)
                self._lay(prepared.checkpoint.unet, compiled=self._settings().compile)
                self._lay(vae.vae, compiled=False)
                kept = self.stock.device.type == "cuda" and places["unet"] is Place.KEPT
                set_fused(prepared.checkpoint.unet, wanted=kept)
            model_hash = self._hashes.short_hash(path)
            vae_hash = str if vae.file is None else self._hashes.short_hash(vae.file)
        checkpoint = dataclasses.replace(prepared.checkpoint, vae=vae.vae)
        room = functools.partial(self.stock.card.has_room_to_record, parts, request, economy)
        with patched(checkpoint.unet, for_unet), patched(checkpoint.vae, for_vae):
            yield Bench(
                checkpoint=checkpoint,
                weights=f"{identity(path)} in {self.stock.dtype}",
                model_hash=model_hash,
                device=self.stock.device,
                attention=for_unet.name,
                vae_name=vae.name,
                vae_hash=vae_hash,
                embeddings=networks.embeddings,
                patches=networks.text_state,
                network_hashes=networks.infotext,
                notices=(
                    *checkpoint.notices,
                    *networks.notices,
                    *self._compile(checkpoint.unet, request, places),
                    *self._record(checkpoint.unet, for_unet.name, places, economy, room=room),
                ),
                refine=refine,
                hires=self._hires(request, prepared, networks, economy),
                upscaler=self.enlarger,
                render=self._render(prepared.checkpoint.family, prepared.checkpoint),
                economy=economy,
                unet_place=places.get("unet", Place.VISITING),
                memory_plan=self.stock.card.memory_in_words(parts, places),
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
        self.stock.card.tell_torch()
        info = self._folder.checkpoint(request.checkpoint)
        require_words_alone(request, info.name)
        path = self._folder.path(info.name)

        with phases("load"), self.stock.residents.turn():
            prepared = self.stock.pipeline(path, info)
            places = self.stock.card.arrange_pipeline(prepared.parts, request, economy)
        yield PipelineBench(
            checkpoint=prepared.checkpoint,
            model_hash=self._hashes.short_hash(path),
            device=self.stock.device,
            places=places,
            memory_plan=self.stock.card.memory_in_words(prepared.parts, places),
            render=self._render(type(prepared.checkpoint.pipeline).__name__, prepared.checkpoint),
            phases=phases,
        )

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
                    self._shelf.use(request, prepared.checkpoint, prepared.patches, device=self.stock.device)

        return lay_out

    def _compile(
        self, unet: torch.nn.Module, request: DiffusionRequest, places: Mapping[str, Place]
    ) -> tuple[str, ...]:
        """Has `unet` run compiled where the settings say so; returns what the person at the page should know of it.

        Extras change how its blocks run from picture to picture, so with them it runs as it is.
        """
        wanted = self._settings().compile and request.extras == Extras()
        refused = why_not(self.stock.device) if wanted else ""
        if wanted and places.get("unet") is Place.STREAMED:
            refused = "Layers that come to the card one after the other cannot be compiled."
        changed = set_compiled(unet, wanted=wanted and not refused)
        if refused:
            return (f"{refused} The network runs as it is.",)
        return (COMPILING,) if changed and wanted else ()

    def _record(
        self,
        unet: torch.nn.Module,
        kernels: str,
        places: Mapping[str, Place],
        economy: Economy,
        *,
        room: Callable[[], bool],
    ) -> tuple[str, ...]:
        """Has the calls of a compiled `unet` recorded as CUDA graphs where its weights stay and there is `room`.

        Returns what the person at the page should know of it.
        """
        wanted = self.stock.device.type == "cuda" and is_compiled(unet)
        refused = ""
        if wanted and places["unet"] is not Place.KEPT:
            refused = "the network's weights do not stay on the card"
        elif wanted and not economy.rungs <= {Rung.TILED}:
            refused = "memory ran out before"
        elif wanted and not room():
            refused = "they would take the memory that its other parts work in"
        set_recorded(unet, wanted=wanted and not refused, kernels=kernels)
        return (f"No CUDA graphs for this picture: {refused}.",) if refused else ()

    def _render(self, family: str, checkpoint: LoadedCheckpoint | LoadedPipeline) -> Render | None:
        """How the checkpoint's forming pictures are shown: by a small decoder where there is one, else by colours."""
        path = find_preview_decoder(self._folder.models, checkpoint.info.name, family)
        if path is not None:
            try:
                return self._preview_decoder(*identity(path), self.stock.dtype)
            except UnsupportedModel as error:
                logger.warning("Previews go without their decoder: %s", error)
        return None if checkpoint.latent_to_rgb is None else by_colours(checkpoint.latent_to_rgb)

    def _load_preview_decoder(self, path: Path, _changed: int, dtype: torch.dtype) -> Render:
        return by_decoder(load_preview_decoder(path, device=self.stock.device, dtype=dtype))

    def upscaler(self, name: str) -> UpscalerNetwork:
        """The upscaler network of that name; raises `UpscalerNotFound` or `UnsupportedModel`."""
        path = self._folder.upscaler_path(name)
        return self.stock.network(
            UpscalerNetwork,
            path,
            lambda: load_upscaler(
                path, self.stock.device, dtype=self.stock.picture_dtype, conversions=self._folder.conversions
            ),
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
        network = self.stock.network(
            FaceNetwork, path, lambda: load_face_network(path, self.stock.device, conversions=self._folder.conversions)
        )
        detector = self.stock.network(FaceDetector, FACE_DETECTOR, lambda: load_face_detector(self.stock.device))
        return FaceRestorer(network, detector, options)

    def word_masker(self, folder: Path) -> WordMasker:
        """The network in `folder` that makes masks from words; raises `UnsupportedModel`."""
        return self.stock.network(WordMasker, folder, lambda: load_word_masker(folder, self.stock.device))

    def foreground_finder(self, path: Path) -> ForegroundFinder:
        """The network in `path` that tells foreground from background; raises `UnsupportedModel`."""
        return self.stock.network(
            ForegroundFinder,
            path,
            lambda: load_foreground_finder(path, self.stock.device, conversions=self._folder.conversions),
        )

    # --- attention, and how feature maps lie

    def _lay(self, network: UNet2DConditionModel | AutoencoderKL, *, compiled: bool) -> None:
        lay(network, choose_layout(self.stock.device, network.dtype, self._remembered, compiled=compiled))

    def _choose(
        self, sizes: frozenset[int], dtypes: tuple[torch.dtype, ...], request: DiffusionRequest, wish: str
    ) -> AttentionChoice:
        length = largest_size(request).area // LATENT_PIXELS**2
        return self._attention.select(self.stock.device, dtypes, sizes, length=length, override=wish)

    def _choose_for_vae(self, sizes: frozenset[int], request: DiffusionRequest, wish: str) -> AttentionChoice:
        """The wish where it works: a VAE's one wide head is more than some kernels take, and no reason to fail.

        It must work in full precision as well, for a VAE that overflows in half goes on in that.
        """
        dtypes = tuple(dict.fromkeys((self.stock.dtype, torch.float32)))
        try:
            return self._choose(sizes, dtypes, request, wish)
        except UserError as error:
            logger.info("The VAE takes its own attention: %s", error)
            return self._choose(sizes, dtypes, request, AUTOMATIC)
