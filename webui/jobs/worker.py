"""The one thread that runs jobs: warms the engine up, then claims and runs jobs in order until it is stopped.

Nothing that happens in a job ends the thread. Cancel and skip may be called from any thread; whether a job is still
queued or already running is decided under one lock, so that a cancel between the two is never lost.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy.exc import OperationalError

from webui.core.errors import AtelierError
from webui.jobs.runner import JobRun, Tools, Wishes

logger = logging.getLogger(__name__)


class Worker:
    """Owns the worker's thread from `start` to `stop`; it can be started once."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._closing = threading.Event()
        self._work_waits = threading.Event()
        self._claiming = threading.Lock()
        self._running: tuple[str, Wishes] | None = None
        self._thread = threading.Thread(target=self._work, name="atelier-worker", daemon=True)

    def start(self) -> None:
        """Starts the thread and the previews'."""
        self._tools.previews.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stops after the current step and puts the running job back into the queue.

        Waits `timeout_s` seconds at most: a load or a step that takes longer is left behind with its daemon thread, and
        its job is queued again at the next start. Returns whether everything has stopped.
        """
        self._closing.set()
        self._work_waits.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("The worker did not stop within %g s; its job is taken up at the next start.", timeout_s)
        self._tools.previews.stop(timeout_s)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """A job has been queued."""
        self._work_waits.set()

    def cancel(self, job_id: str) -> bool:
        """Cancels the job, running (within one step) or queued, and says whether it was either."""
        with self._claiming:
            if self._running is not None and self._running[0] == job_id:
                self._running[1].cancelled.set()
                return True
            return self._tools.store.cancel_queued(job_id)

    def skip(self, job_id: str) -> bool:
        """Asks the running job to leave its current batch; False when the job is not running."""
        with self._claiming:
            if self._running is None or self._running[0] != job_id:
                return False
            self._running[1].control.skip()
            return True

    def _work(self) -> None:
        self._sweep()
        self._warm_up()
        while not self._closing.is_set():
            try:
                claimed = self._claim()
                if claimed is None:
                    self._work_waits.wait()
                    continue
                JobRun(claimed[0], self._tools, claimed[1]).run()
            except OperationalError as error:
                logger.warning("The database cannot be used (%s); trying again.", error.orig)
                self._closing.wait(self._tools.retry_s)
            except Exception:
                logger.exception("The worker met an unexpected error; it goes on with the next job.")
                self._closing.wait(self._tools.retry_s)
            finally:
                with self._claiming:
                    self._running = None

    def _claim(self) -> tuple[str, Wishes] | None:
        with self._claiming:
            self._work_waits.clear()  # before looking, so that a job queued meanwhile wakes the thread again
            if self._closing.is_set():
                return None
            job_id = self._tools.store.claim_next()
            if job_id is not None:
                self._running = (job_id, Wishes(self._closing))
            return self._running

    def _sweep(self) -> None:
        try:
            self._tools.files.sweep()
        except (AtelierError, OSError) as error:
            logger.warning("Files that the last server left half written could not be removed: %s", error)

    def _warm_up(self) -> None:
        try:
            self._tools.engine.warm_up()
        except AtelierError as error:
            # The engine's status says so on the page; each job will fail with its own sentence.
            logger.warning("The engine could not warm up: %s", error)
        except Exception:
            logger.exception("The engine could not warm up.")
