"""The facade of the queue: what the page, the command line and the API call. It owns the worker and the live progress.

It knows the engine only as `webui.core.ports.Engine` and never runs a job on the caller's thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.exc import OperationalError

from webui.core.catalogue import LATENT_UPSCALERS, VAE_AUTOMATIC, VAE_OWN
from webui.core.errors import ResourceError, UnreadableImage, UpscalerNotFound, VaeNotFound
from webui.core.infotext import KnownModels
from webui.core.ports import Engine, JobHooks, ModelCatalogue
from webui.core.requests import Img2Img, Inpaint, Request, Txt2Img, Upscale
from webui.core.validation import validate, with_seed
from webui.gallery import ImageFiles, read_infotext
from webui.jobs import folders
from webui.jobs.ownership import Ownership
from webui.jobs.progress import LiveProgress, Previews
from webui.jobs.recovery import recover
from webui.jobs.runner import Tools
from webui.jobs.store import JobStore
from webui.jobs.views import BatchView, FolderFile, JobView
from webui.jobs.worker import Worker

if TYPE_CHECKING:
    from webui.settings.schema import Settings


class Jobs:
    """The queue. A context manager: entering starts the worker, leaving stops it. Any thread may call any method."""

    def __init__(
        self,
        *,
        database: sqlalchemy.Engine,
        engine: Engine,
        catalogue: ModelCatalogue,
        files: ImageFiles,
        hooks: JobHooks,
        settings: Callable[[], Settings],
        retry_s: float = 1.0,
    ) -> None:
        """`database` comes from `webui.database.opening.open_database` and stays the caller's to dispose of.

        `retry_s` is the pause before a locked database is tried again, in seconds.
        """
        self._catalogue = catalogue
        self._files = files
        self._settings = settings
        self._live = LiveProgress()
        self._ownership = Ownership(database.url)
        self._store = JobStore(database, files.outputs)
        self._worker = Worker(
            Tools(
                store=self._store,
                engine=engine,
                files=files,
                hooks=hooks,
                settings=settings,
                live=self._live,
                previews=Previews(self._live.preview),
                retry_s=retry_s,
            )
        )

    def start(self) -> None:
        """Takes up what a dead server left, then starts the worker; to be called once.

        Only one started `Jobs` may work on a database: a second would take the first one's running job for a dead
        server's. For an SQLite file it raises `UserError`; on a database server it is for the caller to see to.
        """
        self._ownership.take()
        try:
            with _told_as_locked():
                recover(self._store, self._files.outputs)
        except BaseException:
            self._ownership.give_up()
            raise
        self._worker.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends all watching, stops after the current step and puts the running job back; waits `timeout_s` at most."""
        stopped = self._worker.stop(timeout_s)
        self._live.close()
        if stopped:
            self._ownership.give_up()

    def __enter__(self) -> Jobs:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, request: Request, session: str = "") -> str:
        """Checks and queues the request; returns the job's id.

        Settles what was left open (seed -1, checkpoint ""), so that the stored request names what ran. Raises
        `InvalidRequest`, `CheckpointNotFound`, `VaeNotFound` or `UpscalerNotFound`, and `ResourceError` when it cannot
        be stored.
        """
        validate(request)
        settled = with_seed(self._with_model(request))
        with _told_as_locked():
            job_id = self._store.add(settled, session)
        self._live.rows_changed()
        self._worker.wake()
        return job_id

    def submit_folder(
        self, request: Request, batch: folders.FolderBatch, *, models: KnownModels, session: str = ""
    ) -> str:
        """Queues `request`, whose own pictures are empty, for each picture of a folder; returns the batch's id.

        What is made already is skipped; parameters that `batch.own` names come from each picture. Raises as `submit`
        does, and `InvalidRequest` about the folders.
        """
        needs_mask = isinstance(request, Inpaint) and not request.outpaint.grows
        files = folders.listed(batch, masked=needs_mask or batch.masks is not None)
        waiting = [file for file in files if not folders.is_made(file, request)]
        pieces = [self._piece(request, file, batch.own, models) for file in waiting]
        with _told_as_locked():
            batch_id = self._store.add_folder(
                pieces, skipped=len(files) - len(waiting), outputs=batch.outputs, session=session
            )
        self._live.rows_changed()
        self._worker.wake()
        return batch_id

    def _piece(
        self, request: Request, file: FolderFile, own: Sequence[str], models: KnownModels
    ) -> tuple[FolderFile, Request, Sequence[str]]:
        notices: Sequence[str] = ()
        if own:
            try:
                infotext = read_infotext(file.source, self._settings().max_image_pixels) or ""
            except UnreadableImage:
                infotext = ""  # the job will say so, where it is counted and shown
            request, notices = folders.with_own_parameters(request, infotext, own, models)
        # The pictures are read when the job runs; until then something stands in for them.
        validate(folders.with_pictures(request, (b"picture", b"mask")))
        return file, with_seed(self._with_model(request)), notices

    def batch(self, batch_id: str) -> BatchView | None:
        """How far a folder is; None for an unknown id."""
        return self._store.batch(batch_id)

    def watch_batch(self, batch_id: str, *, heartbeat_s: float = 5.0) -> Iterator[BatchView]:
        """How far a folder is, now and after each change, until nothing of it will run any more.

        The same view comes again every `heartbeat_s` seconds in which nothing changed. Ends also when the server stops.
        """
        with self._live.subscribed("") as changes:
            closed = False
            while (view := self.batch(batch_id)) is not None:
                yield view
                if view.is_final or closed:
                    return
                closed = changes.wait(interval_s=0, heartbeat_s=heartbeat_s).closed

    def cancel_batch(self, batch_id: str) -> None:
        """Cancels what has not ended of a folder; finished pictures stay. Raises `ResourceError`."""
        with _told_as_locked():
            for job_id in self._store.cancel_queued_of(batch_id):
                self._worker.cancel(job_id)
        self._live.rows_changed()

    def view(self, job_id: str) -> JobView | None:
        """The job as it is now, its request complete; None for an unknown id."""
        view = self._store.view(job_id)
        return None if view is None else self._with_progress(view)

    def watch(self, job_id: str, *, interval_s: float = 0.1, heartbeat_s: float = 5.0) -> Iterator[JobView]:
        """The job now and after each change, ending with its final state.

        A change of state, of the place in the queue or a new picture is told at once; steps and previews at most every
        `interval_s` seconds. A caller slower than the changes gets the newest. When nothing happens for `heartbeat_s`
        seconds the same view comes again, so that a caller whose client has gone can leave. Ends also when the server
        stops, and yields nothing for an unknown id.
        """
        with self._live.subscribed(job_id) as changes:
            view = self.view(job_id)
            closed = False
            while view is not None:
                yield view
                if view.state.is_final or closed:
                    return
                change = changes.wait(interval_s=interval_s, heartbeat_s=heartbeat_s)
                closed = change.closed
                if change.rows:
                    fresh = self._store.light_view(job_id)
                    view = None if fresh is None else dataclasses.replace(fresh, request=view.request)
                if view is not None:
                    view = dataclasses.replace(view, progress=None if view.state.is_final else change.progress)

    def queue(self) -> Sequence[JobView]:
        """The running job, then the queued ones in order. The pictures inside their requests are empty."""
        return [self._with_progress(view) for view in self._store.unfinished()]

    def recent(self, limit: int) -> Sequence[JobView]:
        """The last `limit` jobs that have ended, the newest first; the pictures inside their requests are empty."""
        return self._store.newest(limit)

    def cancel(self, job_id: str) -> None:
        """Cancels the job: at once when it is queued, within one step when it runs; its finished pictures stay.

        Does nothing to a job that has ended. Raises `ResourceError` when that cannot be stored.
        """
        with _told_as_locked():
            changed = self._worker.cancel(job_id)
        if changed:
            self._live.rows_changed()

    def skip(self, job_id: str) -> None:
        """Lets the running job leave its current batch and go on with the next; does nothing to any other job."""
        self._worker.skip(job_id)

    def _with_model(self, request: Request) -> Request:
        self._check_upscalers(request)
        if isinstance(request, Upscale):
            return request
        if request.vae not in (VAE_AUTOMATIC, VAE_OWN) and request.vae not in (vaes := self._catalogue.vaes()):
            known = ", ".join((VAE_AUTOMATIC, VAE_OWN, *vaes))
            raise VaeNotFound(f"The VAE {request.vae!r} is not there; choose one of {known}.")
        chosen = self._catalogue.checkpoint(request.checkpoint or self._settings().checkpoint)
        return dataclasses.replace(request, checkpoint=chosen.name)

    def _check_upscalers(self, request: Request) -> None:
        known = tuple(self._catalogue.upscalers())
        wanted: list[str] = []
        if isinstance(request, Upscale):
            wanted = [request.upscaler, request.upscaler_2 or request.upscaler]
        elif isinstance(request, Img2Img) and request.sd_upscale.upscaler:
            wanted = [request.sd_upscale.upscaler]
        elif isinstance(request, Txt2Img) and request.hires.enabled and request.hires.upscaler not in LATENT_UPSCALERS:
            wanted = [request.hires.upscaler]
        for name in wanted:
            if name not in known:
                raise UpscalerNotFound(f"The upscaler {name!r} is not there; choose one of {', '.join(known)}.")

    def _with_progress(self, view: JobView) -> JobView:
        return dataclasses.replace(view, progress=None if view.state.is_final else self._live.get(view.id))


@contextmanager
def _told_as_locked() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise ResourceError(
            f"The database cannot be written to ({error.orig}); free disk space, or close what else uses it, and try"
            " again."
        ) from error
