"""What changes too often for the database: the running job's progress and previews, and who is watching.

`LiveProgress` is written by the worker and read by any number of watchers, each woken by a condition of its own, so
nobody polls. `Previews` renders on a thread of its own from a slot that holds only the newest step: a slow preview
costs previews, never a step. Both forget a job as soon as it ends. Nothing here touches the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from webui.jobs.views import Progress

logger = logging.getLogger(__name__)

# How long previews rest after one, in times of what it took: so they take at most one part in 25 of the time.
REST_PER_RENDER = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a watcher was woken for: `rows` when the database says something new (or should be asked again)."""

    rows: bool
    progress: Progress | None
    closed: bool


class Subscription:
    """One watcher of one job. Used by one thread; `LiveProgress` wakes it from others."""

    def __init__(self, job_id: str, live: LiveProgress, lock: threading.RLock) -> None:
        self.job_id = job_id
        self._live = live
        self._condition = threading.Condition(lock)
        self._rows = False
        self._progressed = False
        self._last_progress = float("-inf")

    def wait(self, *, interval_s: float, heartbeat_s: float) -> Change:
        """The next change. Rows are told at once, progress at most every `interval_s` seconds (the newest counts).

        After `heartbeat_s` seconds in which nothing changed it returns all the same, so that a caller whose client
        has gone gets a chance to notice.
        """
        with self._condition:
            if self._condition.wait_for(self._anything, heartbeat_s) and not self._urgent():
                pause_s = self._last_progress + interval_s - time.monotonic()
                if pause_s > 0:
                    self._condition.wait_for(self._urgent, pause_s)
            # A heartbeat reads the rows again too: another process may have written them.
            rows = self._rows or not self._progressed
            self._rows = self._progressed = False
            self._last_progress = time.monotonic()
            return Change(rows=rows, progress=self._live.get(self.job_id), closed=self._live.closed)

    def wake(self, *, rows: bool) -> None:
        """Notes a change; called with the lock held."""
        self._rows = self._rows or rows
        self._progressed = self._progressed or not rows
        self._condition.notify_all()

    def _urgent(self) -> bool:
        return self._rows or self._live.closed

    def _anything(self) -> bool:
        return self._urgent() or self._progressed


class LiveProgress:
    """The progress of the running jobs, and the watchers of all jobs. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._progress: dict[str, Progress] = {}
        self._watchers: set[Subscription] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing will change any more, because the server stops."""
        return self._closed

    def get(self, job_id: str) -> Progress | None:
        """The progress of a running job, None for any other."""
        with self._lock:
            return self._progress.get(job_id)

    def begin(self, job_id: str, progress: Progress) -> None:
        """The job runs from now on."""
        with self._lock:
            self._progress[job_id] = progress
        self.rows_changed()

    def advance(self, job_id: str, *, step: int, total_steps: int, total_images: int, eta_s: float | None) -> None:
        """The job has done a step."""
        self._update(
            job_id,
            lambda now: replace(now, step=step, total_steps=total_steps, total_images=total_images, eta_s=eta_s),
        )

    def image_stored(self, job_id: str, count: int) -> None:
        """The database holds `count` pictures of the job now."""
        self._update(job_id, lambda now: replace(now, image=count), rows=True)

    def preview(self, job_id: str, jpeg: bytes) -> None:
        """A new preview; one that comes after the job's end is dropped."""
        self._update(job_id, lambda now: replace(now, preview=jpeg, preview_number=now.preview_number + 1))

    def end(self, job_id: str) -> None:
        """The job runs no more, and its state is stored: forgets its progress and preview."""
        with self._lock:
            self._progress.pop(job_id, None)
        self.rows_changed()

    def rows_changed(self) -> None:
        """A job changed its state, so that others moved up in the queue too: every watcher looks again."""
        with self._lock:
            for watcher in self._watchers:
                watcher.wake(rows=True)

    def close(self) -> None:
        """Lets every watcher end."""
        with self._lock:
            self._closed = True
        self.rows_changed()

    @contextmanager
    def subscribed(self, job_id: str) -> Iterator[Subscription]:
        """A subscription to the job's changes, from now until the block is left."""
        watcher = Subscription(job_id, self, self._lock)
        with self._lock:
            self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    def _update(self, job_id: str, change: Callable[[Progress], Progress], *, rows: bool = False) -> None:
        with self._lock:
            if job_id not in self._progress:
                return
            self._progress[job_id] = change(self._progress[job_id])
            for watcher in self._watchers:
                if watcher.job_id == job_id:
                    watcher.wake(rows=rows)


class Eta:
    """Seconds left, from the mean pace since the first step seen (so that loading a checkpoint does not count)."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def after(self, step: int, total: int, now_s: float) -> float | None:
        """The estimate after `step` of `total` steps at the clock's `now_s`; None while there is but one step."""
        if self._first is None:
            self._first = (step, now_s)
        first_step, first_s = self._first
        if step <= first_step:
            return None
        return (now_s - first_s) / (step - first_step) * (total - step)


class Previews:
    """Renders previews beside the worker. `offer` never blocks; the thread lives from `start` to `stop`."""

    def __init__(self, publish: Callable[[str, bytes], None]) -> None:
        """`publish` receives the job's id and the JPEG bytes, on this object's thread."""
        self._publish = publish
        self._condition = threading.Condition()
        self._slot: tuple[str, Callable[[], bytes], float] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="atelier-previews", daemon=True)

    def start(self) -> None:
        """Starts the thread; once only."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the preview in hand."""
        with self._condition:
            self._stopping = True
            self._slot = None
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def offer(self, job_id: str, render: Callable[[], bytes], *, per_second: float) -> None:
        """Puts the newest step in the slot, in place of one not rendered yet; `per_second` is a limit above 0."""
        with self._condition:
            if not self._stopping:
                self._slot = (job_id, render, 1 / per_second)
                self._condition.notify_all()

    def clear(self) -> None:
        """Empties the slot, so that it keeps no latent of a job that has ended."""
        with self._condition:
            self._slot = None

    def _work(self) -> None:
        rendered, rest_s = float("-inf"), 0.0
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._slot is not None)
                if self._slot is not None:
                    # The slot may be refilled while this waits for its turn: then the newer one is taken.
                    due = rendered + max(self._slot[2], rest_s)
                    self._condition.wait_for(lambda: self._stopping, max(0.0, due - time.monotonic()))
                if self._stopping:
                    return
                taken, self._slot = self._slot, None
            if taken is not None:
                began = time.monotonic()
                self._render(*taken[:2])
                rendered = time.monotonic()
                # A slow preview takes its processors from the sampler: the slower, the longer the rest after it.
                rest_s = (rendered - began) * REST_PER_RENDER
                del taken  # it holds a latent

    def _render(self, job_id: str, render: Callable[[], bytes]) -> None:
        try:
            self._publish(job_id, render())
        except Exception:
            logger.exception("A preview of job %s could not be made; the job goes on without it.", job_id)
