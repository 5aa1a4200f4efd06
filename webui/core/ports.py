"""The seams between layers, as Protocols: whoever needs one asks for it here, and `webui.bootstrap` plugs it in."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from webui.core.events import Event, Step
from webui.core.geometry import Size
from webui.core.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint that can be chosen, as far as its header tells."""

    name: str
    family: str
    native_size: Size


class ModelCatalogue(Protocol):
    """What lies in the models folder. Reading it loads no weights and no torch; it may be called from any thread."""

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """All checkpoints, the default first."""
        ...

    def upscalers(self) -> Sequence[str]:
        """Names of all upscalers, the built-in ones first."""
        ...

    def vaes(self) -> Sequence[str]:
        """Names of all separate VAEs."""
        ...

    def face_restorers(self) -> Sequence[str]:
        """Names of all networks that restore faces."""
        ...

    def checkpoint(self, name: str) -> CheckpointInfo:
        """The checkpoint of that name, the default for ""; raises `CheckpointNotFound`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferStatus:
    """How far a model on offer is: `phase` is "offered", "fetching", "present" or "failed"; `detail` is a sentence."""

    phase: str
    detail: str = ""


class ModelOffer(Protocol):
    """A model that can be had with one click. Any thread may call it; fetching happens on a thread of its own."""

    @property
    def name(self) -> str:
        """What the menu calls the model once it is there."""
        ...

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    @property
    def megabytes(self) -> int:
        """How much room it takes."""
        ...

    def fetch(self) -> None:
        """Begins to fetch it, unless that is going on or done."""
        ...

    def watch(self) -> Iterator[OfferStatus]:
        """How far it is now, then each change (and the same again every few seconds) until it is not being fetched."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What the page says about the engine: `phase` is "warming up", "ready" or "failed".

    `memory` is the plan of what stays on a graphics card, in words; "" where there is none.
    """

    phase: str
    device: str = ""
    attention: str = ""
    checkpoint: str = ""
    memory: str = ""
    detail: str = ""


class Control:
    """How a consumer asks a running request to skip the current batch; stopping is closing the generator.

    Thread-safe: any thread may ask, the engine takes the wish once.
    """

    def __init__(self) -> None:
        self._skip = threading.Event()

    def skip(self) -> None:
        """Asks for the current batch to be left unfinished."""
        self._skip.set()

    def take_skip(self) -> bool:
        """Whether a skip was asked for since the last call."""
        wanted = self._skip.is_set()
        self._skip.clear()
        return wanted


class Engine(Protocol):
    """Turns requests into pictures. One thread calls it; `status` may be called from any."""

    def warm_up(self) -> None:
        """Imports the heavy libraries and loads the default checkpoint, so that the first picture comes soon."""
        ...

    def status(self) -> EngineStatus:
        """What the engine is doing and with what."""
        ...

    def generate(self, request: Request, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
        """Runs `request` from batch `start_batch` on; closing the generator stops within one step."""
        ...


class Masker(Protocol):
    """Makes masks of pictures, with the models for that in the models folder. Any thread may call it.

    Masks are of mode "L" and the picture's size, white what was meant. Both methods wait for the engine, and raise
    `ModelNotFound` with a sentence on what to put where, `UnsupportedModel`, `OutOfMemory`, or `ResourceError` when
    the engine stays at work on a request.
    """

    def by_prompt(self, image: Image.Image, words: str) -> Image.Image:
        """Black and white: what `words` name, several things parted by commas; raises `InvalidRequest` for none."""
        ...

    def foreground(self, image: Image.Image) -> Image.Image:
        """How much each place belongs to the foreground, grey along its edge."""
        ...


class JobHooks(Protocol):
    """What extensions may do around a job. An implementation never raises: it logs, names and disables what fails."""

    def before_job(self, request: Request) -> Request:
        """Called once before the engine starts; returns the request to run."""
        ...

    def on_step(self, request: Request, step: Step) -> None:
        """Called after each step."""
        ...

    def process_image(self, image: Image.Image, request: Request) -> Image.Image:
        """Called for each finished picture before it is saved; returns the picture to save."""
        ...

    def after_job(self, request: Request, state: str) -> None:
        """Called once at the end; `state` is "finished", "failed" or "cancelled"."""
        ...
