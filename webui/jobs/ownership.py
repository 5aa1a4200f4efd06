"""Sees to it that one server at a time works on an SQLite database.

A second one would take the first one's running job for a dead server's and run it again. The lock is the operating
system's, on a file beside the database, so that it ends with the process, `kill -9` included. POSIX only, as
`webui.core.durable`. Databases on a server are not locked: see `Jobs.start`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sqlalchemy import URL

from webui.core.errors import UserError
from webui.database.opening import is_in_memory


class Ownership:
    """The right to run a database's jobs, from `take` to `give_up`."""

    def __init__(self, url: URL) -> None:
        in_file = url.get_backend_name() == "sqlite" and not is_in_memory(url)
        self._database = Path(str(url.database)) if in_file else None
        self._descriptor: int | None = None

    def take(self) -> None:
        """Takes the lock; raises `UserError` when another server has it."""
        if self._database is None:
            return
        descriptor = os.open(f"{self._database}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"Another Atelier server already runs the jobs in {self._database}; stop it, or start this one with"
                " another data folder."
            ) from error
        self._descriptor = descriptor

    def give_up(self) -> None:
        """Lets another server take the lock; does nothing when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
