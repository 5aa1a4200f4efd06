"""Runs one job: the engine's events become files, rows and progress, in that order.

For each picture: its row is reserved, its file is written and renamed, the row gets the path, the watchers are told.
See `webui.jobs.recovery` for what a crash in between leaves. The thread and the queue are `webui.jobs.worker`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar, cast

from sqlalchemy.exc import OperationalError

from webui.core.errors import AtelierError
from webui.core.events import Event, ImageReady, Notice, Started, Step
from webui.core.ports import Control, Engine, JobHooks
from webui.core.requests import Request, Upscale, task_name
from webui.core.validation import validate
from webui.gallery import ImageFiles, open_picture, png_bytes, read_infotext
from webui.jobs.folders import is_made, target_at, with_pictures
from webui.jobs.progress import Eta, LiveProgress, Previews
from webui.jobs.store import JobStore, Work
from webui.jobs.views import FolderFile, JobState, Progress
from webui.settings.schema import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What others want of the running job; `closing` is shared by all jobs of a worker."""

    closing: threading.Event
    cancelled: threading.Event = field(default_factory=threading.Event)
    control: Control = field(default_factory=Control)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a job is run with. `retry_s` is the pause before a locked database is tried again, in seconds."""

    store: JobStore
    engine: Engine
    files: ImageFiles
    hooks: JobHooks
    settings: Callable[[], Settings]
    live: LiveProgress
    previews: Previews
    retry_s: float = 1.0


def first_batch(request: Request, stored: frozenset[int]) -> int:
    """The batch to start with: the one after the last that is wholly stored, or the one that is stored in part.

    Earlier batches without pictures were skipped on purpose and are not made up for.
    """
    if not stored:
        return 0
    size = request.images_per_batch
    last = max(stored) // size
    whole = all(place in stored for place in range(last * size, (last + 1) * size))
    return last + 1 if whole else last


class JobRun:
    """One run of one claimed job, on the worker's thread."""

    def __init__(self, job_id: str, tools: Tools, wishes: Wishes) -> None:
        self._id = job_id
        self._tools = tools
        self._wishes = wishes
        self._eta = Eta()
        self._stored: set[int] = set()
        self._total_images = 0
        self._file: FolderFile | None = None

    def run(self) -> None:
        """Runs the job and stores how it ended. Raises nothing that a job can cause."""
        request: Request | None = None
        error: str | None = None
        try:
            work = self._patiently(lambda: self._tools.store.work(self._id))
            request = work.request
            self._begin(work)
            if self._file is not None and is_made(self._file, request):
                state = JobState.FINISHED  # by another job, or by the last server just before its end
            else:
                request = self._prepared(self._with_files(request))
                state = self._consume(request)
        except AtelierError as failure:
            logger.warning("Job %s failed: %s", self._id, failure)
            state, error = JobState.FAILED, str(failure)
        except Exception as failure:
            logger.exception("Job %s failed unexpectedly.", self._id)
            state = JobState.FAILED
            error = f"The job failed unexpectedly ({type(failure).__name__}: {failure}); the log has the details."
        self._tools.previews.clear()
        self._settle(state, error)
        if request is not None and state.is_final:
            self._tools.hooks.after_job(request, state.value)

    def _begin(self, work: Work) -> None:
        self._stored.update(work.stored)
        self._file = work.file
        self._total_images = work.request.total_images
        self._tools.live.begin(self._id, Progress(image=len(self._stored), total_images=self._total_images))

    def _prepared(self, stored: Request) -> Request:
        request = self._tools.hooks.before_job(stored)
        if request != stored:
            validate(request)
        return request

    def _with_files(self, request: Request) -> Request:
        """`request` with the pictures of its folder's files, if it is of a folder; raises `UnreadableImage`."""
        if self._file is None:
            return request
        most = self._tools.settings().max_image_pixels
        source, mask = self._file.source, self._file.mask
        pictures = [png_bytes(open_picture(source, most), read_infotext(source, most) or "")]
        if mask is not None:
            pictures.append(png_bytes(open_picture(mask, most)))
        return with_pictures(request, pictures)

    def _consume(self, request: Request) -> JobState:
        start = first_batch(request, frozenset(self._stored))
        if start > 0 and start >= self._batches(request):
            return JobState.FINISHED  # the last server died between the last picture and the end
        events = self._tools.engine.generate(request, control=self._wishes.control, start_batch=start)
        # The port promises a generator: closing it is how a request is stopped.
        with closing(cast("Generator[Event, None, None]", events)):
            if (stopped := self._stopped()) is not None:
                return stopped
            for event in events:
                self._handle(event, request)
                if (stopped := self._stopped()) is not None:
                    return stopped
        return JobState.FINISHED

    @staticmethod
    def _batches(request: Request) -> int:
        return 1 if isinstance(request, Upscale) else request.batch_count

    def _stopped(self) -> JobState | None:
        if self._wishes.cancelled.is_set():
            return JobState.CANCELLED
        return JobState.QUEUED if self._wishes.closing.is_set() else None

    def _handle(self, event: Event, request: Request) -> None:
        if isinstance(event, Started):
            self._total_images = event.total_images
            self._advance(0, event.total_steps, None)
        elif isinstance(event, Step):
            self._tools.hooks.on_step(request, event)
            self._advance(event.index, event.total, self._eta.after(event.index, event.total, time.monotonic()))
            settings = self._tools.settings()
            if event.preview is not None and settings.previews:
                self._tools.previews.offer(self._id, event.preview, per_second=settings.previews_per_second)
        elif isinstance(event, Notice):
            logger.warning("Job %s: %s", self._id, event.text)
            self._patiently(lambda: self._tools.store.add_notice(self._id, event.text))
            self._tools.live.rows_changed()
        elif isinstance(event, ImageReady) and event.index not in self._stored:
            self._store(event, request)

    def _advance(self, step: int, total: int, eta_s: float | None) -> None:
        self._tools.live.advance(self._id, step=step, total_steps=total, total_images=self._total_images, eta_s=eta_s)

    def _store(self, event: ImageReady, request: Request) -> None:
        store, files = self._tools.store, self._tools.files
        image = self._tools.hooks.process_image(event.image, request)
        # Half surrogates, which a browser may send, have no encoding in files or databases.
        infotext = event.infotext.encode("utf-8", "replace").decode("utf-8")
        reservation = self._patiently(
            lambda: store.reserve_image(self._id, index=event.index, seed=event.seed, infotext=infotext)
        )
        if self._file is None:
            path = files.save(image, task=task_name(request), seed=event.seed, infotext=infotext)
        else:
            path = target_at(self._file.target, event.index)
            if not files.save_at(image, path, infotext=infotext):
                self._patiently(lambda: store.add_notice(self._id, f"{path} is there already and was left as it is."))
                return
        self._patiently(lambda: store.list_image(reservation, path))
        self._stored.add(event.index)
        self._tools.live.image_stored(self._id, len(self._stored))

    def _settle(self, state: JobState, error: str | None) -> None:
        store = self._tools.store
        if state is JobState.QUEUED:
            self._patiently(lambda: store.requeue(self._id))
        else:
            self._patiently(lambda: store.settle(self._id, state, error))
        self._tools.live.end(self._id)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Tries `action` until the database lets it through, or once only when the server stops.

        A transaction that failed has left nothing, and the picture in hand is worth the wait.
        """
        while True:
            try:
                return action()
            except OperationalError as error:
                if self._wishes.closing.is_set():
                    raise
                logger.warning("The database cannot be written to (%s); trying again.", error.orig)
                self._wishes.closing.wait(self._tools.retry_s)
