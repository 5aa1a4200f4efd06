"""Hashes of model files, kept so that a restart reads no file again. All SQL about them; any thread may call."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import ColumnElement, Engine, and_, delete, insert, select

from webui.database.opening import reading, writing
from webui.database.tables import model_hashes


class HashTable:
    """Digests by path and kind, each good for the size and time that its file had.

    Methods raise `sqlalchemy.exc.SQLAlchemyError` when the database cannot be used; the engine stays the caller's.
    """

    def __init__(self, database: Engine) -> None:
        self._database = database

    def get(self, path: Path, kind: str, *, size: int, modified_ns: int) -> str | None:
        """The hexadecimal digest of that kind for the file in this state, None when it is not known."""
        query = select(model_hashes.c.digest).where(
            _row(path, kind), model_hashes.c.size == size, model_hashes.c.modified_ns == modified_ns
        )
        with reading(self._database) as connection:
            return connection.execute(query).scalar()

    def put(self, path: Path, kind: str, digest: str, *, size: int, modified_ns: int) -> None:
        """Keeps `digest` in place of what was known about the file before."""
        with writing(self._database) as connection:
            connection.execute(delete(model_hashes).where(_row(path, kind)))
            connection.execute(
                insert(model_hashes).values(
                    path=_key(path), kind=kind, size=size, modified_ns=modified_ns, digest=digest
                )
            )


def _row(path: Path, kind: str) -> ColumnElement[bool]:
    return and_(model_hashes.c.path == _key(path), model_hashes.c.kind == kind)


def _key(path: Path) -> str:
    """The path as text that every database takes, also where its name is not UTF-8."""
    return str(path.absolute()).encode("utf-8", "backslashreplace").decode("utf-8")
