"""The first tables: jobs, the pictures in their requests, and the images they made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("session", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "number"])
    op.create_table(
        "request_pictures",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("field", sa.String(32), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "field", name="pk_request_pictures"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_request_pictures_job_id", ondelete="CASCADE"),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("path", sa.Text),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("infotext", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("job_id", "place", name="uq_images_job_id"),
        sa.UniqueConstraint("path", name="uq_images_path"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_images_job_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("images")
    op.drop_table("request_pictures")
    op.drop_table("jobs")
