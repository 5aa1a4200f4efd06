"""Opens a database, brings its tables up to date, and says how transactions begin.

For every SQLite connection made here: WAL, so that readers never wait for the writer; foreign keys on; a busy timeout,
so that a locked database is waited for; and writers take the lock when they begin (BEGIN IMMEDIATE), because a reader
that turns writer is refused at once, without the timeout
(https://www.sqlite.org/lang_transaction.html#deferred_immediate_and_exclusive_transactions).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from webui.core.errors import ResourceError, UserError

MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "atelier_writes"


def open_database(url_or_path: str | Path | URL, *, busy_timeout_s: float = 30.0) -> Engine:
    """An engine on the database, its tables made or migrated to the newest form.

    A path (or a string without "://") is an SQLite file, whose folder is made when missing; "sqlite://" is a database
    in memory. Raises `UserError` for a database of a newer Atelier, `ResourceError` for one that cannot be opened. The
    caller disposes of the engine.
    """
    url = _url(url_or_path)
    shown = url.render_as_string(hide_password=True)
    try:
        engine = _sqlite(url, busy_timeout_s) if url.get_backend_name() == "sqlite" else create_engine(url)
        try:
            _migrate(engine, shown)
        except BaseException:
            engine.dispose()
            raise
    except (DatabaseError, OSError) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error
        raise ResourceError(
            f"The database {shown} cannot be opened ({reason}); check that it is a database and that its folder is"
            " writable, or start Atelier with another data folder."
        ) from error
    return engine


def is_in_memory(url: URL) -> bool:
    """Whether an SQLite URL names no file."""
    return url.database in (None, "", ":memory:")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection whose queries see one state of the database."""
    with engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start; committed at the end, rolled back on an exception.

    Raises `sqlalchemy.exc.OperationalError` when the lock is not free within the busy timeout.
    """
    with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
        yield connection


def _url(url_or_path: str | Path | URL) -> URL:
    if isinstance(url_or_path, URL):
        return url_or_path
    if isinstance(url_or_path, str) and "://" in url_or_path:
        return make_url(url_or_path)
    return URL.create("sqlite", database=str(Path(url_or_path).absolute()))


def _sqlite(url: URL, busy_timeout_s: float) -> Engine:
    connecting: dict[str, Any] = {"timeout": busy_timeout_s, "check_same_thread": False}
    if is_in_memory(url):
        # Each connection would open a memory of its own: all threads take turns with one.
        engine = create_engine(url, connect_args=connecting, poolclass=QueuePool, pool_size=1, max_overflow=0)
    else:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args=connecting)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 must not begin transactions by itself: `_begin` does
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine, shown: str) -> None:
    with writing(engine) as connection:  # one transaction, so two servers starting at once take turns
        if _is_newest(connection):
            return
        from alembic.util.exc import CommandError

        from webui.database.migrating import migrate

        try:
            migrate(connection)
        except CommandError as error:
            raise UserError(
                f"The database {shown} was made by another version of Atelier ({error}); update Atelier, or start it"
                " with another data folder."
            ) from error


def _is_newest(connection: Connection) -> bool:
    """Whether the database says that it was brought to the last of the migrations, whose names begin with a number."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    newest = max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [newest]
