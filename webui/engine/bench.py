"""What lies ready for one request: `Bench`. The workshop lays it out; the recipe and its passes work on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from webui.checkpoints.hash import PendingHash
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.catalogue import BUILT_IN_UPSCALERS
from webui.core.errors import UpscalerNotFound
from webui.core.requests import Extras
from webui.engine.conditioning import Embeddings, PromptCache
from webui.engine.extras import patched_vae
from webui.engine.ladder import NOTHING_SAVED, Economy, Rung
from webui.engine.phases import Phases
from webui.engine.placement import placed
from webui.engine.plan import Place
from webui.engine.previews import Render
from webui.engine.upscale.upscalers import Upscaler, built_in


def built_in_upscaler(name: str) -> Upscaler:
    """The filter of that name; raises `UpscalerNotFound`."""
    found = built_in(name)
    if found is None:
        raise UpscalerNotFound(f"There is no upscaler {name!r} here; choose one of {', '.join(BUILT_IN_UPSCALERS)}.")
    return found


VAE_TILE = 512  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the manager lays out for one request: the checkpoint, where it runs and with which attention.

    `prompts` outlives the request; `phases` already holds what loading took. `weights` tells the checkpoint's from any
    others, also from those of a file that took its name. `vae_name` is that of a VAE in place of the checkpoint's own,
    "" without one. The hashes may still be in the making. `embeddings` may be named in prompts; `patches` tells what
    LoRAs change in the text encoders from any other such change; `network_hashes` are A1111's pairs about both, and
    `notices` what the person at the page should know about them. `refine` lays out the refiner's own bench, where one
    is asked for, and `hires` that of hires fix's second pass, where it differs from this, with the hashes of both;
    `upscaler` finds a pixel upscaler by its name. `render` makes previews.

    `economy` is what is given up for memory, `memory_plan` the plan in words, "" where there is nothing to plan; if the
    UNet is not kept on the device, `unet_place` says how it comes there.
    """

    checkpoint: LoadedCheckpoint
    weights: str
    model_hash: PendingHash
    device: torch.device
    attention: str
    vae_name: str = ""
    vae_hash: PendingHash = str
    embeddings: Embeddings | None = None
    patches: Hashable = ()
    network_hashes: Callable[[], Mapping[str, str]] = dict
    notices: tuple[str, ...] = ()
    refine: Callable[[], AbstractContextManager[Bench]] | None = None
    hires: Callable[[], AbstractContextManager[Bench]] | None = None
    upscaler: Callable[[str], Upscaler] = built_in_upscaler
    render: Render | None = None
    economy: Economy = NOTHING_SAVED
    unet_place: Place = Place.VISITING
    memory_plan: str = ""
    prompts: PromptCache = field(default_factory=PromptCache)
    phases: Phases = field(default_factory=Phases)

    @property
    def vae_tile(self) -> int | None:
        """The side in pixels of the tiles in which the VAE works; None for whatever memory turns out to need."""
        return VAE_TILE if Rung.TILED in self.economy else None

    def unet_at_work(self) -> AbstractContextManager[None]:
        """Within the block the UNet is on the device, or comes there as the plan has it."""
        return placed(self.checkpoint.unet, self.device, place=self.unet_place)

    @contextmanager
    def vae_at_work(self, extras: Extras, phase: str) -> Iterator[None]:
        """Within the block the VAE is on the device and works as `extras` asks; the time counts towards `phase`."""
        vae = self.checkpoint.vae
        # It comes whole wherever its weights fit: beside them it works in tiles that are as large as there is room for.
        with self.phases(phase), placed(vae, self.device, working_bytes=0), patched_vae(vae, extras):
            yield
