"""Runs that ask by batch."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run") as run:
        run.add_column(
            sa.Column(
                "mode",
                sa.Enum("live", "batch", name="runmode", native_enum=False, length=16),
                nullable=False,
                server_default="live",
            )
        )
    with op.batch_alter_table("run") as run:  # the default was for the rows that were there
        run.alter_column("mode", server_default=None)
    op.create_table(
        "batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.Column("remote_id", sa.String(), nullable=True),
        sa.Column("response_format", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_batch_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_index(op.f("ix_batch_run_id"), "batch", ["run_id"], unique=False)
    op.create_table(
        "batch_request",
        sa.Column("batch_id", sa.Integer(), nullable=False),
        sa.Column("dedupe_key", sa.String(), nullable=False),
        sa.Column("label_id", sa.Integer(), nullable=False),
        sa.Column("sample_index", sa.Integer(), nullable=False),
        sa.Column("confusable", sa.JSON(), nullable=False),
        sa.Column("texts", sa.JSON(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batch.id"], name=op.f("fk_batch_request_batch_id_batch")
        ),
        sa.ForeignKeyConstraint(
            ["label_id"], ["label.id"], name=op.f("fk_batch_request_label_id_label")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["generation.id"], name=op.f("fk_batch_request_parent_id_generation")
        ),
        sa.PrimaryKeyConstraint("batch_id", "dedupe_key", name=op.f("pk_batch_request")),
    )
    op.create_index(
        op.f("ix_batch_request_dedupe_key"), "batch_request", ["dedupe_key"], unique=False
    )


def downgrade() -> None:
    op.drop_table("batch_request")
    op.drop_table("batch")
    with op.batch_alter_table("run") as run:
        run.drop_column("mode")
