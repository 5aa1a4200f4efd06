"""Puts the queue in order after the last server died, before the new one takes a job.

A picture is stored in three steps: its row is reserved, its file is written, the row gets the file's path. Killed
between the second and the third, a server leaves a whole file that no row lists. Such a file is adopted: it is the one
in the task's folder, or where a folder's result goes, that no row lists, was written after the reservation, and carries
the reserved infotext. Where there is none, the reservation is dropped and the picture is made again. Each picture is
listed exactly once.
"""

from __future__ import annotations

import logging
from pathlib import Path

from webui.core.durable import TEMPORARY_SUFFIX
from webui.core.errors import UnreadableImage
from webui.gallery.pictures import read_infotext
from webui.jobs.folders import target_at
from webui.jobs.store import JobStore, Reservation

logger = logging.getLogger(__name__)

MOST_CRASHES = 3
_CLOCK_SLACK_S = 2.0  # file systems stamp files with a coarser clock than time.time(), FAT to two seconds
_POISONED = (
    f"The server stopped without warning {MOST_CRASHES} times in a row while this job ran without a new picture;"
    " it is not tried again. Smaller pictures or a smaller batch need less memory."
)


def recover(store: JobStore, outputs: Path) -> None:
    """Adopts finished files, queues the jobs that were running, and fails one that keeps killing the server.

    To be called while no worker runs on the same database.
    """
    for reservation in store.reservations():
        path = _written_file(reservation, store, outputs)
        if path is not None:
            store.list_image(reservation.id, path)
            logger.info("Found %s, which was finished just before the last server stopped.", path)
    queued, failed = store.requeue_crashed(most_crashes=MOST_CRASHES, error=_POISONED)
    for job_id in queued:
        logger.info("Job %s was running when the last server stopped; it is queued again.", job_id)
    for job_id in failed:
        logger.warning("Job %s was running at %d crashes in a row; it is not tried again.", job_id, MOST_CRASHES)


def _written_file(reservation: Reservation, store: JobStore, outputs: Path) -> Path | None:
    since = reservation.created_at - _CLOCK_SLACK_S
    if reservation.target is None:
        candidates = sorted((outputs / reservation.task).rglob("*.*"))
    else:
        candidates = [target_at(Path(reservation.target), reservation.place)]
    for path in candidates:
        if path.suffix == TEMPORARY_SUFFIX or not path.is_file() or path.stat().st_mtime < since:
            continue
        try:
            if (read_infotext(path) or "") == reservation.infotext and not store.is_listed(path):
                return path
        except UnreadableImage:
            logger.debug("%s is not a picture of ours.", path)
    return None
