"""Hashes of model files, and what a job had to say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_hashes",
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("modified_ns", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("path", "kind", name="pk_model_hashes"),
    )
    op.add_column("jobs", sa.Column("notices", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("jobs", "notices")
    op.drop_table("model_hashes")
