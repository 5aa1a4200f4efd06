"""What of the loaded models lies on the device that computes, and what makes room there for the rest.

Where things go is decided by `plan`; this module measures what is free, and carries the plan out. On the CPU there is
only one memory, and nothing moves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from webui.core.hires import largest_size
from webui.core.requests import DiffusionRequest
from webui.engine.bench import VAE_TILE
from webui.engine.ladder import Economy, Rung
from webui.engine.pipeline_placement import set_tiled
from webui.engine.placement import CPU, ModulePart, bring, bytes_on_device, move
from webui.engine.plan import (
    Bound,
    Need,
    Place,
    all_kept_bytes,
    in_words,
    needs_of,
    needs_tiles,
    plan,
    weights_in_words,
)
from webui.engine.residents import Resident, Residents
from webui.hardware.device import choose_device, describe, set_fast_arithmetic
from webui.hardware.graphs import recorded_bytes, set_recorded
from webui.hardware.low_bits import FULL
from webui.hardware.memory import free_bytes, give_back, limit

if TYPE_CHECKING:
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

GIB = 2**30


class Card:
    """The device that computes, a graphics card or the CPU, and the `residents` that may be on it.

    Owned by the stock, and so used by one thread at a time. `settings` bound what is taken of it.
    """

    def __init__(self, residents: Residents[Any], settings: Callable[[], Settings]) -> None:
        self._residents = residents
        self._settings = settings
        self.device = choose_device()

    @property
    def name(self) -> str:
        """The device's name for people."""
        return describe(self.device)

    @property
    def offloads(self) -> bool:
        """Whether the device has a memory of its own, which weights can leave."""
        return self.device != CPU

    def tell_torch(self) -> None:
        """Has torch itself hold to what the settings allow of the card, and of its arithmetic."""
        set_fast_arithmetic(self.device, wanted=self._settings().fast_arithmetic)
        limit(self.device, int(self._settings().video_memory_gib * GIB))

    def release_memory(self) -> None:
        """Gives up what is not needed at once, after memory ran out."""
        self._residents.release_others()
        for resident in self._residents.all():
            for part in _module_parts(resident):
                set_recorded(part.module, wanted=False)
        give_back(self.device)

    def memory_in_words(self, parts: Mapping[str, ModulePart], places: Mapping[str, Place]) -> str:
        """Where `parts` go, and in how few bits they lie; "" where there is one memory and all weights are full."""
        told = [in_words(places, _weight_bytes_of(parts))] if places else []
        packed = {name: (part.kind, part.weight_bytes) for name, part in parts.items() if part.kind != FULL}
        if packed:
            told.append(weights_in_words(packed))
        return "; ".join(told)

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
        self, parts: Mapping[str, ModulePart], request: DiffusionRequest, economy: Economy
    ) -> dict[str, Place]:
        """As `arrange`, for the components of a pipeline.

        Its VAE works in tiles where it has to, and where the last measure is taken: nothing tells in which of its
        phases a pipeline ran out of memory.
        """
        places, economy = self.arrange(parts, request, economy)
        tile = VAE_TILE if {Rung.TILED, Rung.OFFLOAD} & economy.rungs else None
        set_tiled((part.module for part in parts.values()), tile=tile)
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
        held = sum(bytes_on_device(_module_parts(resident)) for resident in self._residents.all())
        allowed = self._settings().video_memory_gib
        free = free_bytes(self.device)
        return min(free, int(allowed * GIB) - held) if allowed else free

    def home(self, expected_bytes: int) -> torch.device:
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
            logger.info("Not everything stays on %s: %s", self.name, in_words(places, _weight_bytes_of(parts)))
        return places, economy

    def _make_room(self, wanted_bytes: int, *, keep: Iterable[ModulePart] = ()) -> None:
        """Moves models into main memory, the least recently used first, until `wanted_bytes` are free on the device.

        If that is not enough, recorded calls are given up of those to `keep`.
        """
        kept = {id(part.module): part.module for part in keep}
        for resident in self._residents.all():
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
    vae_pixels = min(pixels, VAE_TILE**2) if Rung.TILED in economy else None
    return needs_of(_weight_bytes_of(parts), pixels=pixels, batch_size=request.batch_size, vae_pixels=vae_pixels)


def _weight_bytes_of(parts: Mapping[str, ModulePart]) -> dict[str, int]:
    return {name: part.weight_bytes for name, part in parts.items()}


def _module_parts(resident: Resident[Any]) -> list[ModulePart]:
    return [part for part in resident.parts.values() if isinstance(part, ModulePart)]
