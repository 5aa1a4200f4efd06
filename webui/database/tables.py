"""The tables, in SQLAlchemy Core. Each change here needs a migration; a test holds the two together.

Times are seconds since 1970 (UTC). The pictures that a request carries (what img2img starts from, masks) lie in a table
of their own, so that listing jobs never reads them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),  # the order of submission; never reused
    Column("id", String(32), nullable=False, unique=True),
    Column("task", String(32), nullable=False),
    Column("session", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", Text, nullable=False),  # JSON, its pictures left empty
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("crashes", Integer, nullable=False),  # in a row, since the last picture
    Column("error", Text),
    Column("notices", Text, nullable=False, server_default="[]"),  # JSON: what the job had to say, in order
    Index(None, "state", "number"),
    sqlite_autoincrement=True,
)

request_pictures = Table(
    "request_pictures",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("field", String(32), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("place", Integer, nullable=False),  # in the request, from 0
    Column("path", Text, unique=True),  # NULL while the file is being written; such rows are never listed
    Column("seed", BigInteger, nullable=False),
    Column("infotext", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("job_id", "place"),
)

# A folder worked through one job a picture; `pictures` counts those that had to be made.
folder_batches = Table(
    "folder_batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("pictures", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),  # were there already
    Column("outputs", Text, nullable=False),
)

# The files of such a job: its request's pictures are read from them when it runs.
folder_jobs = Table(
    "folder_jobs",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("batch_id", String(32), ForeignKey("folder_batches.id", ondelete="CASCADE"), nullable=False),
    Column("source", Text, nullable=False),
    Column("mask", Text),
    Column("target", Text, nullable=False),
    Index(None, "batch_id"),
)

# What hashing a file gave, for as long as the file has this size and time; see `webui.database.hashes`.
model_hashes = Table(
    "model_hashes",
    metadata,
    Column("path", Text, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("modified_ns", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)
