"""What a running request reports, in order: `Started`, then for each batch its `Step`s and `ImageReady`s, `Finished`.

Previews, progress and cancel are consumers of this stream; none of them is known to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event: how much work lies ahead, and what does it."""

    total_images: int
    total_steps: int
    checkpoint: str = ""
    attention: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One denoising step (or one upscaled tile) is done.

    `index` counts from 1 to `total` over the whole request. `sigma` is the noise level that the step began at.
    `preview` renders the forming picture as JPEG bytes when called, from any thread, any time later; it is None where
    there is nothing to show.
    """

    index: int
    total: int
    batch: int
    sigma: float = 0.0
    preview: Callable[[], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReady:
    """A finished picture: its place in the request (from 0), its own seed and its complete infotext."""

    index: int
    image: Image.Image
    seed: int
    infotext: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the person at the page should know, in a sentence; the request goes on. May come at any time."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event: seconds spent in each phase ("load", "encode", "denoise", "decode", …)."""

    seconds: Mapping[str, float]


Event = Started | Step | ImageReady | Notice | Finished
