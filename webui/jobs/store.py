"""All SQL about jobs and their images. Each method is one transaction; any thread may call any of them.

Listings read no request pictures. A row of `images` without a path is a reservation: the worker makes it before it
writes the file, so that after a crash `webui.jobs.recovery` knows which file may lie on disk unlisted. Reservations are
never listed. Methods raise `sqlalchemy.exc.OperationalError` when the database stays locked; callers may try again.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, and_, case, delete, func, insert, or_, select, update

from webui.core.codec import request_from_json, request_to_json
from webui.core.fields import whole_fields
from webui.core.requests import Request, task_name
from webui.database.opening import reading, writing
from webui.database.tables import folder_batches, folder_jobs, images, jobs, request_pictures
from webui.jobs.views import BatchView, FolderFile, ImageView, JobState, JobView

_UNFINISHED = (JobState.QUEUED.value, JobState.RUNNING.value)
_MOST_FAILURES_TOLD = 5

# Jobs of a folder give way to all others, or whoever asks for one picture would wait for hundreds.
_OF_FOLDER = jobs.c.id.in_(select(folder_jobs.c.job_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A claimed job's request, and the places of the pictures that earlier runs have stored."""

    request: Request
    stored: frozenset[int]
    file: FolderFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A picture whose file was being written, or about to be, when the server died.

    `target` is where a folder's result goes, for the job's first picture (`place` 0).
    """

    id: int
    task: str
    place: int
    infotext: str
    created_at: float
    target: str | None


class JobStore:
    """Jobs and images in a database opened by `webui.database.opening.open_database`; it stays the caller's."""

    def __init__(self, database: Engine, outputs: Path) -> None:
        """`outputs`: image paths below it are stored relative to it, so that the folder may be moved."""
        self._database = database
        self._outputs = outputs

    # --- submitting and running

    def add(self, request: Request, session: str) -> str:
        """Stores a queued job and returns its new id."""
        with writing(self._database) as connection:
            return _add(connection, request, session, ())

    def add_folder(
        self, pieces: Sequence[tuple[FolderFile, Request, Sequence[str]]], *, skipped: int, outputs: Path, session: str
    ) -> str:
        """Stores a queued job for each file of a folder, all or none, and returns the new batch's id.

        Each comes with its request and with sentences that become the job's notices.
        """
        batch_id = uuid.uuid4().hex
        with writing(self._database) as connection:
            batch = insert(folder_batches).values(
                id=batch_id, pictures=len(pieces), skipped=skipped, outputs=str(outputs)
            )
            connection.execute(batch)
            for file, request, notices in pieces:
                job_id = _add(connection, request, session, notices)
                paths = {"source": str(file.source), "target": str(file.target)}
                mask = None if file.mask is None else str(file.mask)
                connection.execute(insert(folder_jobs).values(job_id=job_id, batch_id=batch_id, mask=mask, **paths))
        return batch_id

    def claim_next(self) -> str | None:
        """Makes the first queued job the running one and returns its id; None when none is queued.

        Jobs are taken in the order of submission, those of folders after all others. One that runs again after a crash
        is therefore at the front of its kind.
        """
        with writing(self._database) as connection:
            queued = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED.value)
            first = queued.order_by(_OF_FOLDER, jobs.c.number).limit(1)
            job_id = connection.execute(first.with_for_update(skip_locked=True)).scalar()
            if job_id is not None:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=JobState.RUNNING.value))
            return job_id

    def work(self, job_id: str) -> Work:
        """What there is to do for a claimed job; raises `InvalidRequest` when this version cannot read the request."""
        with reading(self._database) as connection:
            row = connection.execute(_whole_jobs().where(jobs.c.id == job_id)).one()
            listed = select(images.c.place).where(images.c.job_id == job_id, images.c.path.is_not(None))
            return Work(
                request=_with_pictures(connection, job_id, row.request),
                stored=frozenset(connection.execute(listed).scalars()),
                file=_file(row),
            )

    def reserve_image(self, job_id: str, *, index: int, seed: int, infotext: str) -> int:
        """Notes that a picture is about to be written; returns the id for `list_image`."""
        with writing(self._database) as connection:
            connection.execute(delete(images).where(_reservations_of(job_id), images.c.place == index))
            made = connection.execute(
                insert(images)
                .values(job_id=job_id, place=index, seed=seed, infotext=infotext, created_at=time.time())
                .returning(images.c.id)
            )
            return made.scalar_one()

    def list_image(self, reservation_id: int, path: Path) -> None:
        """The reserved picture's file is whole and lies at `path`: it is listed from now on."""
        with writing(self._database) as connection:
            # Files are never overwritten: a row that names this path describes a file that was deleted by hand.
            stored_path = self._stored_path(path)
            connection.execute(delete(images).where(images.c.path == stored_path, images.c.id != reservation_id))
            done = update(images).where(images.c.id == reservation_id).values(path=stored_path)
            job_id = connection.execute(done.returning(images.c.job_id)).scalar_one()
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(crashes=0))

    def add_notice(self, job_id: str, text: str) -> None:
        """Keeps a sentence about the job; one that it has already is not kept twice."""
        with writing(self._database) as connection:
            row = connection.execute(select(jobs.c.notices).where(jobs.c.id == job_id)).one()
            notices: list[str] = json.loads(row.notices)
            if text not in notices:
                said = update(jobs).where(jobs.c.id == job_id).values(notices=json.dumps([*notices, text]))
                connection.execute(said)

    def settle(self, job_id: str, state: JobState, error: str | None = None) -> None:
        """The job has ended, in a final state."""
        with writing(self._database) as connection:
            ended = update(jobs).where(jobs.c.id == job_id)
            connection.execute(ended.values(state=state.value, error=error, finished_at=time.time()))
            connection.execute(delete(images).where(_reservations_of(job_id)))

    def requeue(self, job_id: str) -> None:
        """The running job goes back into the queue, because the server stops in good order."""
        with writing(self._database) as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=JobState.QUEUED.value))
            connection.execute(delete(images).where(_reservations_of(job_id)))

    def cancel_queued(self, job_id: str) -> bool:
        """Cancels the job if it is queued, and says whether it was."""
        with writing(self._database) as connection:
            queued = and_(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED.value)
            cancelled = update(jobs).where(queued).values(state=JobState.CANCELLED.value, finished_at=time.time())
            return connection.execute(cancelled).rowcount == 1

    def cancel_queued_of(self, batch_id: str) -> Sequence[str]:
        """Cancels what is queued of a folder; returns the ids of what runs of it."""
        of_batch = jobs.c.id.in_(select(folder_jobs.c.job_id).where(folder_jobs.c.batch_id == batch_id))
        with writing(self._database) as connection:
            queued = update(jobs).where(of_batch, jobs.c.state == JobState.QUEUED.value)
            connection.execute(queued.values(state=JobState.CANCELLED.value, finished_at=time.time()))
            running = select(jobs.c.id).where(of_batch, jobs.c.state == JobState.RUNNING.value)
            return connection.execute(running).scalars().all()

    # --- after a crash

    def reservations(self) -> Sequence[Reservation]:
        """All reservations that a dead server has left."""
        query = (
            select(
                images.c.id, jobs.c.task, images.c.place, images.c.infotext, images.c.created_at, folder_jobs.c.target
            )
            .join(jobs, jobs.c.id == images.c.job_id)
            .outerjoin(folder_jobs, folder_jobs.c.job_id == jobs.c.id)
            .where(images.c.path.is_(None))
            .order_by(images.c.id)
        )
        with reading(self._database) as connection:
            return [Reservation(**row._mapping) for row in connection.execute(query)]

    def is_listed(self, path: Path) -> bool:
        """Whether a listed picture has this file."""
        with reading(self._database) as connection:
            return (
                connection.execute(select(images.c.id).where(images.c.path == self._stored_path(path))).first()
                is not None
            )

    def requeue_crashed(self, *, most_crashes: int, error: str) -> tuple[Sequence[str], Sequence[str]]:
        """Queues the jobs that a dead server left running, and fails those it has happened to too often.

        Counts a crash for each; `most_crashes` in a row without a new picture fail the job with `error`. Drops the
        reservations that are left. Returns the ids of the queued and of the failed jobs.
        """
        running = jobs.c.state == JobState.RUNNING.value
        with writing(self._database) as connection:
            connection.execute(delete(images).where(images.c.path.is_(None)))
            connection.execute(update(jobs).where(running).values(crashes=jobs.c.crashes + 1))
            fail = update(jobs).where(running, jobs.c.crashes >= most_crashes)
            fail = fail.values(state=JobState.FAILED.value, error=error, finished_at=time.time())
            failed = connection.execute(fail.returning(jobs.c.id)).scalars().all()
            again = update(jobs).where(running).values(state=JobState.QUEUED.value)
            queued = connection.execute(again.returning(jobs.c.id)).scalars().all()
            return queued, failed

    # --- reading

    def view(self, job_id: str) -> JobView | None:
        """The job with the pictures of its request; None for an unknown id."""
        with reading(self._database) as connection:
            row = connection.execute(_whole_jobs().where(jobs.c.id == job_id)).first()
            if row is None:
                return None
            (view,) = self._views(connection, [row], [self._position(connection, row)])
            return dataclasses.replace(view, request=_with_pictures(connection, job_id, row.request))

    def light_view(self, job_id: str) -> JobView | None:
        """As `view`, without the pictures of the request."""
        with reading(self._database) as connection:
            row = connection.execute(_whole_jobs().where(jobs.c.id == job_id)).first()
            return None if row is None else self._views(connection, [row], [self._position(connection, row)])[0]

    def unfinished(self) -> Sequence[JobView]:
        """Running jobs, then queued ones in the order in which they will run; without the pictures of the requests."""
        running_first = case((jobs.c.state == JobState.RUNNING.value, 0), else_=1)
        query = _whole_jobs().where(jobs.c.state.in_(_UNFINISHED))
        query = query.order_by(running_first, _OF_FOLDER, jobs.c.number)
        with reading(self._database) as connection:
            rows = connection.execute(query).all()
            return self._views(connection, rows, range(len(rows)))

    def newest(self, limit: int) -> Sequence[JobView]:
        """The last `limit` jobs that have ended, the newest first; without the pictures of the requests."""
        query = _whole_jobs().where(jobs.c.state.not_in(_UNFINISHED))
        query = query.order_by(jobs.c.finished_at.desc()).limit(limit)
        with reading(self._database) as connection:
            rows = connection.execute(query).all()
            return self._views(connection, rows, [0] * len(rows))

    def batch(self, batch_id: str) -> BatchView | None:
        """How far a folder is; None for an unknown id."""
        of_batch = select(jobs.c.state, jobs.c.error, folder_jobs.c.source).join(folder_jobs)
        of_batch = of_batch.where(folder_jobs.c.batch_id == batch_id)
        counted = select(jobs.c.state, func.count()).join(folder_jobs).where(folder_jobs.c.batch_id == batch_id)
        with reading(self._database) as connection:
            batch = connection.execute(select(folder_batches).where(folder_batches.c.id == batch_id)).first()
            if batch is None:
                return None
            counts = {row[0]: row[1] for row in connection.execute(counted.group_by(jobs.c.state))}
            running = connection.execute(of_batch.where(jobs.c.state == JobState.RUNNING.value)).first()
            failed = of_batch.where(jobs.c.state == JobState.FAILED.value).order_by(jobs.c.number)
            failures = connection.execute(failed.limit(_MOST_FAILURES_TOLD)).all()
        return BatchView(
            id=batch_id,
            outputs=Path(batch.outputs),
            total=batch.pictures + batch.skipped,
            skipped=batch.skipped,
            finished=counts.get(JobState.FINISHED.value, 0),
            failed=counts.get(JobState.FAILED.value, 0),
            cancelled=counts.get(JobState.CANCELLED.value, 0),
            running="" if running is None else Path(running.source).name,
            failures=tuple((Path(row.source).name, row.error or "") for row in failures),
        )

    def _position(self, connection: Connection, row: Row[Any]) -> int:
        if row.state != JobState.QUEUED.value:
            return 0
        earlier = jobs.c.number < row.number
        before = and_(~_OF_FOLDER, earlier) if row.source is None else or_(~_OF_FOLDER, earlier)
        queued_before = and_(jobs.c.state == JobState.QUEUED.value, before)
        ahead = select(func.count()).where(or_(jobs.c.state == JobState.RUNNING.value, queued_before))
        return connection.execute(ahead).scalar_one()

    def _views(self, connection: Connection, rows: Sequence[Row[Any]], positions: Iterable[int]) -> list[JobView]:
        listed = select(images).where(images.c.job_id.in_([row.id for row in rows]), images.c.path.is_not(None))
        by_job: defaultdict[str, list[ImageView]] = defaultdict(list)
        for image in connection.execute(listed.order_by(images.c.place)):
            path = self._outputs / image.path
            by_job[image.job_id].append(
                ImageView(index=image.place, path=path, seed=image.seed, infotext=image.infotext)
            )
        return [
            JobView(
                id=row.id,
                task=row.task,
                state=JobState(row.state),
                request=request_from_json(json.loads(row.request)),
                created_at=row.created_at,
                position=position,
                progress=None,
                images=tuple(by_job[row.id]),
                error=row.error,
                session=row.session,
                notices=tuple(json.loads(row.notices)),
                file=_file(row),
                batch=row.batch_id or "",
            )
            for row, position in zip(rows, positions, strict=True)
        ]

    def _stored_path(self, path: Path) -> str:
        inside = path.is_relative_to(self._outputs)
        return path.relative_to(self._outputs).as_posix() if inside else str(path)


def _reservations_of(job_id: str) -> Any:
    return and_(images.c.job_id == job_id, images.c.path.is_(None))


def _whole_jobs() -> Select[Any]:
    """Jobs, and the files of those of folders."""
    files = (folder_jobs.c.batch_id, folder_jobs.c.source, folder_jobs.c.mask, folder_jobs.c.target)
    return select(jobs, *files).outerjoin(folder_jobs, folder_jobs.c.job_id == jobs.c.id)


def _file(row: Row[Any]) -> FolderFile | None:
    if row.source is None:
        return None
    mask = None if row.mask is None else Path(row.mask)
    return FolderFile(source=Path(row.source), target=Path(row.target), mask=mask)


def _add(connection: Connection, request: Request, session: str, notices: Sequence[str]) -> str:
    job_id = uuid.uuid4().hex
    pictures = _pictures(request)
    connection.execute(
        insert(jobs).values(
            id=job_id,
            task=task_name(request),
            session=session,
            state=JobState.QUEUED.value,
            request=json.dumps(request_to_json(_replaced(request, dict.fromkeys(pictures, b"")))),
            created_at=time.time(),
            crashes=0,
            notices=json.dumps(list(notices)),
        )
    )
    for field, data in pictures.items():
        connection.execute(insert(request_pictures).values(job_id=job_id, field=field, data=data))
    return job_id


def _pictures(part: Any) -> dict[str, bytes]:
    """The pictures that a request, or a group of its fields, carries, by dotted names."""
    found: dict[str, bytes] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, bytes) and value:
            found[field.name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": data for name, data in _pictures(value).items()}
    return found


def _replaced(request: Request, changes: Mapping[str, Any]) -> Request:
    return dataclasses.replace(request, **whole_fields(request, changes))


def _with_pictures(connection: Connection, job_id: str, request_json: str) -> Request:
    query = select(request_pictures.c.field, request_pictures.c.data).where(request_pictures.c.job_id == job_id)
    pictures = {row.field: row.data for row in connection.execute(query)}
    return _replaced(request_from_json(json.loads(request_json)), pictures)
