"""Folders of pictures worked through one job a picture."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "folder_batches",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("pictures", sa.Integer, nullable=False),
        sa.Column("skipped", sa.Integer, nullable=False),
        sa.Column("outputs", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_folder_batches"),
    )
    op.create_table(
        "folder_jobs",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("batch_id", sa.String(32), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("mask", sa.Text),
        sa.Column("target", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_folder_jobs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_folder_jobs_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["folder_batches.id"], name="fk_folder_jobs_batch_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_folder_jobs_batch_id", "folder_jobs", ["batch_id"])


def downgrade() -> None:
    op.drop_table("folder_jobs")
    op.drop_table("folder_batches")
