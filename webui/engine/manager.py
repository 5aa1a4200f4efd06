"""The engine as the rest of the program knows it: owns the loaded models, swaps them, runs one request at a time.

Implements `webui.core.ports.Engine`. Importing this module, and making an `EngineManager`, loads no torch: that begins
in `warm_up` or `generate`, in the worker's thread, so that the page is up long before. How a picture is made is in
`generate`; here is only what outlives a request, and the sentences for what can go wrong around one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from webui.checkpoints.hash import ModelHashes
from webui.core.errors import AtelierError, OutOfMemory, ResourceError
from webui.core.events import Event
from webui.core.hires import largest_size
from webui.core.ports import Control, EngineStatus
from webui.core.requests import DiffusionRequest, Img2Img, Request, Txt2Img, Upscale
from webui.engine.ladder import NOTHING_SAVED, Economy, Remembered, offered
from webui.hardware.environment import prepare_environment

if TYPE_CHECKING:
    from webui.checkpoints.scan import CheckpointFolder
    from webui.engine.bench import Bench
    from webui.engine.phases import Phases
    from webui.engine.pipelines import PipelineBench
    from webui.engine.workshop import Workshop
    from webui.settings.schema import Settings

logger = logging.getLogger(__name__)


class EngineManager:
    """Turns requests into pictures with the models of `folder`.

    Thread rule: one thread calls `warm_up` and `generate`, one request at a time (a lock holds others off until the
    running generator is exhausted or closed); `status` may be called from any thread and never waits. `hashes` says
    what infotexts call the models, `attention_file` is where the choices of attention are remembered.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        settings: Callable[[], Settings],
        hashes: ModelHashes | None = None,
        attention_file: Path | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._hashes = hashes or ModelHashes()
        self._attention_file = attention_file
        self._remembered = Remembered()
        self._lock = threading.Lock()
        self._workshop: Workshop | None = None
        self._status = EngineStatus(phase="warming up", detail="Loading torch and the default checkpoint.")

    def status(self) -> EngineStatus:
        """What the engine is doing and with what."""
        return self._status

    def warm_up(self) -> None:
        """Imports the heavy libraries and loads the default checkpoint.

        Never raises: what fails is logged and said by `status`, and another checkpoint may still be asked for.
        """
        with self._lock:
            try:
                workshop = self._open_workshop()
                with self._bench(workshop, Txt2Img()):
                    pass
            except AtelierError as error:
                self._fail(str(error))
            except Exception as error:
                logger.exception("Warming up failed")
                self._fail(f"The engine could not start ({type(error).__name__}: {error}); the log has the details.")

    def generate(self, request: Request, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
        """Runs `request` from batch `start_batch` on; closing the generator stops within one step.

        A checkpoint that cannot be loaded leaves the one before it loaded. Raises the errors of `webui.core.errors`,
        among them `OutOfMemory`.
        """
        with self._lock:
            try:
                workshop = self._open_workshop()
                if isinstance(request, Upscale):
                    yield from self._upscale(workshop, request, control)
                else:
                    yield from self._diffuse(workshop, request, control, start_batch)
            except (MemoryError, RuntimeError) as error:
                from webui.hardware.memory import is_out_of_memory

                if not is_out_of_memory(error):
                    raise
                raise self._out_of_memory(request) from error

    @contextmanager
    def borrowed(self, *, patience_s: float = 60.0) -> Iterator[Workshop]:
        """The workshop for something short beside the requests, such as a mask; any thread may ask.

        Raises `ResourceError` when a request is still running after `patience_s`, and `OutOfMemory`.
        """
        if not self._lock.acquire(timeout=patience_s):
            raise ResourceError("The engine is at work on a picture; try again when it is done.")
        try:
            yield self._open_workshop()
        except (MemoryError, RuntimeError) as error:
            from webui.hardware.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            if self._workshop is not None:
                self._workshop.stock.card.release_memory()
            raise OutOfMemory("Memory ran out; try again, or close other programs.") from error
        finally:
            self._lock.release()

    def _open_workshop(self) -> Workshop:
        if self._workshop is None:
            prepare_environment()
            # Here torch, diffusers and transformers are imported.
            from webui.engine.workshop import Workshop

            self._workshop = Workshop(self._folder, self._settings, self._hashes, self._attention_file)
        return self._workshop

    @contextmanager
    def _bench(
        self,
        workshop: Workshop,
        request: DiffusionRequest,
        economy: Economy = NOTHING_SAVED,
        phases: Phases | None = None,
    ) -> Iterator[Bench | PipelineBench]:
        """The workshop's bench for `request`; the status says what is on it."""
        lay_out = workshop.pipeline_bench if workshop.wants_pipeline(request) else workshop.bench
        with lay_out(request, economy=economy, phases=phases) as bench:
            self._status = EngineStatus(
                phase="ready",
                device=workshop.stock.card.name,
                attention=bench.attention,
                checkpoint=bench.checkpoint.info.name,
                memory=bench.memory_plan,
            )
            yield bench

    def _diffuse(
        self, workshop: Workshop, request: DiffusionRequest, control: Control, start_batch: int
    ) -> Iterator[Event]:
        """The events of `request`, tried again where memory runs out; what sufficed is where the next one begins."""
        from webui.engine.attempts import persevere
        from webui.engine.bench import Bench
        from webui.engine.generate import generate
        from webui.engine.loopback import loopback
        from webui.engine.pipelines import generate_with_pipeline
        from webui.engine.sd_upscale import sd_upscale

        def run(economy: Economy, first: int, phases: Phases) -> Generator[Event, None, None]:
            with self._bench(workshop, request, economy, phases) as bench:
                if isinstance(bench, Bench) and isinstance(request, Img2Img) and request.sd_upscale.upscaler:
                    yield from sd_upscale(request, bench, control=control, start_batch=first)
                elif isinstance(bench, Bench) and isinstance(request, Img2Img) and request.loopback.loops > 1:
                    yield from loopback(request, bench, control=control, start_batch=first)
                elif isinstance(bench, Bench):
                    yield from generate(request, bench, control=control, start_batch=first)
                else:
                    yield from generate_with_pipeline(request, bench, control=control, start_batch=first)

        checkpoint = self._folder.checkpoint(request.checkpoint).name
        sufficed = yield from persevere(
            request,
            run,
            start_batch=start_batch,
            economy=self._remembered.of(checkpoint, request),
            offered=offered(request, offload=workshop.stock.card.offloads, pipeline=workshop.wants_pipeline(request)),
            release=workshop.stock.card.release_memory,
            widen=lambda: workshop.stock.widen_unet(request),
        )
        self._remembered.keep(checkpoint, request, sufficed)

    def _upscale(self, workshop: Workshop, request: Upscale, control: Control) -> Iterator[Event]:
        from webui.engine.upscale import upscale

        yield from upscale(
            request,
            lambda name: workshop.enlarger(name, request),
            control=control,
            restore=workshop.face_restorer(request.faces),
        )

    def _fail(self, sentence: str) -> None:
        logger.error("Warming up failed: %s", sentence)
        self._status = EngineStatus(phase="failed", detail=sentence)

    def _out_of_memory(self, request: Request) -> OutOfMemory:
        if self._workshop is not None:
            self._workshop.stock.card.release_memory()
        if isinstance(request, Upscale):
            return OutOfMemory(
                f"Memory ran out while upscaling by {request.scale:g} with {request.upscaler};"
                " choose a smaller tile or a smaller scale."
            )
        return OutOfMemory(
            f"Memory ran out at {largest_size(request)} with batch size {request.batch_size};"
            " choose a smaller size or batch, or close other programs."
        )
