"""Workers: when they were seen, and what they have."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "worker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("gpu", sa.Boolean(), nullable=False),
        sa.Column("memory_gb", sa.Float(), nullable=False),
        sa.Column("offers", sa.JSON(), nullable=True),
        sa.Column("first_seen", WHEN, nullable=False),
        sa.Column("last_seen", WHEN, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
        sa.UniqueConstraint("name", name=op.f("uq_worker_name")),
    )
    op.create_index(op.f("ix_worker_last_seen"), "worker", ["last_seen"])


def downgrade() -> None:
    op.drop_table("worker")
