"""What a job looks like from outside. Values only: nothing here touches the database, files or threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from webui.core.requests import Choice, Request


class JobState(Choice):
    """Where a job stands. Queued and running jobs may still change; the other states are final."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state stays as it is."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running job is. Steps count over the whole request, from 0; `image` is how many pictures are stored.

    `total_steps` is 0 until the engine has said what lies ahead; `eta_s` (seconds) is None until two steps are done.
    `preview` is the newest preview as JPEG bytes, and `preview_number` grows by one with each.
    """

    step: int = 0
    total_steps: int = 0
    image: int = 0
    total_images: int = 0
    eta_s: float | None = None
    preview: bytes | None = None
    preview_number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """A stored picture: its place in the request (from 0), its file, its own seed and its infotext.

    The file was whole when it was listed; someone may have deleted it by hand since.
    """

    index: int
    path: Path
    seed: int
    infotext: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """One picture of a folder: what is read, the mask that goes with it, and where the result is written."""

    source: Path
    target: Path
    mask: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchView:
    """A folder at one moment: `skipped` of its `total` pictures were there already when it was asked for.

    `failures` are the first few, as the file's name and a sentence; `running` is the file in hand, "" for none.
    """

    id: str
    outputs: Path
    total: int
    skipped: int
    finished: int
    failed: int
    cancelled: int
    running: str
    failures: tuple[tuple[str, str], ...]

    @property
    def is_final(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.skipped + self.finished + self.failed + self.cancelled == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job at one moment.

    `position` is the number of jobs that will be done before this one: 0 for the running job and for finished ones.
    `progress` is None unless the job is running here. `error` is a sentence when the state is failed;
    `notices` are sentences about what went otherwise than asked. `created_at` is
    in seconds since 1970. Listings leave the pictures inside `request` empty (see `Jobs.queue`). A job of a folder has
    its `file`, where its pictures lie instead of in `request`, and the id of its `batch`.
    """

    id: str
    task: str
    state: JobState
    request: Request
    created_at: float
    position: int
    progress: Progress | None
    images: tuple[ImageView, ...]
    error: str | None
    session: str
    notices: tuple[str, ...] = ()
    file: FolderFile | None = None
    batch: str = ""
