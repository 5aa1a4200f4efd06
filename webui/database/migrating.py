"""Brings a database's tables to their newest form, by the steps in migrations/.

Apart from `opening`, because Alembic takes a good tenth of a second to import, and a database is seldom behind.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from webui.database.opening import MIGRATIONS


def migrate(connection: Connection) -> None:
    """Takes the steps that are missing, in the transaction of `connection`.

    Raises `alembic.util.exc.CommandError` for a database whose form none of them makes.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
