"""Where a model's components go when the device cannot hold them all: numbers in, a plan and its words out. No torch.

The phases of a request come one after the other, so what must fit at one moment is what stays on the device, the
component at work, and the memory that its work takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import combinations


class Place(str, Enum):
    """How a component comes to the device.

    It stays there between requests, comes wholly for its phase, or comes some layers at a time where it is too large
    for that.
    """

    KEPT = "kept"
    VISITING = "visiting"
    STREAMED = "streamed"


class Bound(str, Enum):
    """The most that a plan may make of the device, by A1111's names: what fits, one component at a time, or less yet.

    With MEDVRAM nothing stays between its phases; with LOWVRAM the denoising network is streamed besides.
    """

    AUTO = "auto"
    MEDVRAM = "medvram"
    LOWVRAM = "lowvram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a component takes on the device: its weights, and beside them its work at the size that was asked for."""

    weight_bytes: int
    working_bytes: int


# What work takes for each pixel of the pictures, in half precision: estimates, rounded up. The UNet sees prompt and
# negative prompt of the whole batch at an eighth of the size; the VAE decodes one picture at a time at full size.
_UNET_BYTES_PER_PIXEL = 2048
_VAE_BYTES_PER_PIXEL = 4096
_LEAST_WORKING_BYTES = 128 * 2**20
NETWORKS = frozenset({"unet", "transformer"})


def working_bytes(component: str, *, pixels: int, batch_size: int) -> int:
    """An estimate of what `component` ("unet", "vae", "text_encoder", …) needs to work on `pixels` a picture."""
    if component in NETWORKS:
        return _LEAST_WORKING_BYTES + _UNET_BYTES_PER_PIXEL * pixels * batch_size
    if component == "vae":
        return _LEAST_WORKING_BYTES + _VAE_BYTES_PER_PIXEL * pixels
    return _LEAST_WORKING_BYTES


def needs_of(
    weight_bytes: Mapping[str, int], *, pixels: int, batch_size: int, vae_pixels: int | None = None
) -> dict[str, Need]:
    """What components (bytes of weights by name) need at `pixels` a picture, its VAE at `vae_pixels` where given."""
    seen = {} if vae_pixels is None else {"vae": vae_pixels}
    return {
        name: Need(
            weight_bytes=weights,
            working_bytes=working_bytes(name, pixels=seen.get(name, pixels), batch_size=batch_size),
        )
        for name, weights in weight_bytes.items()
    }


def needs_tiles(vae: Need, *, free_bytes: int) -> bool:
    """Whether a VAE cannot work on whole pictures with `free_bytes`, even if nothing else is on the device."""
    return vae.working_bytes > _LEAST_WORKING_BYTES and vae.weight_bytes + vae.working_bytes > free_bytes


def visit(need: Need, *, free_bytes: int) -> Place:
    """How a component that is not kept comes to a device with `free_bytes`."""
    return Place.VISITING if need.weight_bytes + need.working_bytes <= free_bytes else Place.STREAMED


def plan(needs: Mapping[str, Need], *, free_bytes: int, bound: Bound = Bound.AUTO) -> dict[str, Place]:
    """The place of each component on a device with `free_bytes` for all of them and their work.

    As many bytes as possible are kept within `bound`, so that as few as possible travel for each picture. A component
    that could not even visit an empty device is streamed, and the others make room for its work alone.
    """
    if bound is not Bound.AUTO:
        places = {name: visit(need, free_bytes=free_bytes) for name, need in needs.items()}
        streamed = NETWORKS & needs.keys() if bound is Bound.LOWVRAM else frozenset[str]()
        return {**places, **dict.fromkeys(streamed, Place.STREAMED)}
    kept: tuple[str, ...] = ()  # the last and lightest subset, where none fits
    for kept in _subsets_by_weight(needs):
        if _peak_bytes(needs, kept, free_bytes) <= free_bytes:
            break
    left = free_bytes - sum(needs[name].weight_bytes for name in kept)
    return {
        name: Place.KEPT if name in kept else visit(need, free_bytes=min(left, free_bytes))
        for name, need in needs.items()
    }


def all_kept_bytes(needs: Mapping[str, Need]) -> int:
    """What the device must have free for every component to be kept there."""
    weights = sum(need.weight_bytes for need in needs.values())
    return weights + max((need.working_bytes for need in needs.values()), default=0)


def _subsets_by_weight(needs: Mapping[str, Need]) -> list[tuple[str, ...]]:
    """All choices of what to keep, the heaviest first; a model has a handful of components."""
    choices = [chosen for count in range(len(needs) + 1) for chosen in combinations(needs, count)]
    return sorted(choices, key=lambda chosen: -sum(needs[name].weight_bytes for name in chosen))


def _peak_bytes(needs: Mapping[str, Need], kept: tuple[str, ...], free_bytes: int) -> int:
    """The most that is on the device at one moment while `kept` stays there."""
    if not kept:
        return 0  # nothing more can be given up
    base = sum(needs[name].weight_bytes for name in kept)
    phases: list[int] = []
    for name, need in needs.items():
        visits = name not in kept and visit(need, free_bytes=free_bytes) is Place.VISITING
        phases.append(base + need.working_bytes + (need.weight_bytes if visits else 0))
    return max(phases)


def weights_in_words(packed: Mapping[str, tuple[str, int]]) -> str:
    """What parts take in their formats (format and bytes by name), such as "unet in fp8, 0.8 GiB"."""
    return ", ".join(
        f"{name.replace('_', ' ')} in {kind}, {size / 2**30:.1f} GiB" for name, (kind, size) in sorted(packed.items())
    )


_WORDS = {Place.VISITING: "brought for its phase", Place.STREAMED: "streamed layer by layer"}


def in_words(places: Mapping[str, Place], weight_bytes: Mapping[str, int]) -> str:
    """The plan as people read it, with what travels: "vae brought for its phase, 0.2 GiB a picture".

    A network that is streamed, "unet streamed layer by layer, 1.6 GiB a step", comes anew for each step. Components are
    parted by semicolons; "everything stays on the device" where nothing travels. `weight_bytes` are theirs by name.
    """
    told = [
        f"{name.replace('_', ' ')} {_WORDS[place]}, {_size(weight_bytes[name])} a {_occasion(name, place)}"
        for name, place in places.items()
        if place is not Place.KEPT
    ]
    return "; ".join(told) if told else "everything stays on the device"


def _occasion(name: str, place: Place) -> str:
    return "step" if name in NETWORKS and place is Place.STREAMED else "picture"


def _size(count: int) -> str:
    gib = count / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / 2**20:.0f} MiB"
