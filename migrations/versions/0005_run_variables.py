"""Runs in other languages and of several texts an answer, and what their answers broke."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("run", "generation"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("variables", sa.JSON(), nullable=False, server_default="{}"))
        # The default was for the rows that are there; new rows always say.
        with op.batch_alter_table(name) as table:
            table.alter_column("variables", server_default=None)
    op.create_table(
        "run_finding",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_finding_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "verdict", "rule", name=op.f("pk_run_finding")),
    )


def downgrade() -> None:
    op.drop_table("run_finding")
    for name in ("generation", "run"):
        with op.batch_alter_table(name) as table:
            table.drop_column("variables")
