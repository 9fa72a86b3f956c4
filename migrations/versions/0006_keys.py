"""API keys and the audit log; what a job waits for and what it needs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column(
            "scope",
            sa.Enum("read", "write", "admin", name="scope", native_enum=False, length=16),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_key_hash")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=True),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_key.id"], name=op.f("fk_audit_entry_key_id_api_key")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
    )
    op.create_index(op.f("ix_audit_entry_key_id"), "audit_entry", ["key_id"], unique=False)

    with op.batch_alter_table("job") as job:
        job.alter_column("release_id", existing_type=sa.Integer(), nullable=True)
        job.add_column(sa.Column("after_run", sa.Integer(), nullable=True))
        job.add_column(
            sa.Column("needs_gpu", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
        job.add_column(
            sa.Column("needs_memory_gb", sa.Float(), server_default=sa.text("0"), nullable=False)
        )
        job.add_column(
            sa.Column("shrink_batch", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
        job.create_foreign_key(op.f("fk_job_after_run_run"), "run", ["after_run"], ["id"])
        job.create_index(op.f("ix_job_after_run"), ["after_run"], unique=False)
    with op.batch_alter_table("job") as job:  # the defaults were for the rows that were there
        for name in ("needs_gpu", "needs_memory_gb", "shrink_batch"):
            job.alter_column(name, server_default=None)


def downgrade() -> None:
    # Jobs that wait for a run have no place in the older schema.
    waiting = "(SELECT id FROM job WHERE release_id IS NULL)"
    op.execute(f"DELETE FROM job_event WHERE job_id IN {waiting}")
    op.execute("DELETE FROM job WHERE release_id IS NULL")
    with op.batch_alter_table("job") as job:
        job.drop_index(op.f("ix_job_after_run"))
        job.drop_constraint(op.f("fk_job_after_run_run"), type_="foreignkey")
        for name in ("after_run", "needs_gpu", "needs_memory_gb", "shrink_batch"):
            job.drop_column(name)
        job.alter_column("release_id", existing_type=sa.Integer(), nullable=False)
    op.drop_table("audit_entry")
    op.drop_table("api_key")
