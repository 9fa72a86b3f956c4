"""The fence of a lease is a random token instead of a count that can be guessed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, was_nullable in (("job", False), ("job_event", True)):
        with op.batch_alter_table(table) as changed:
            changed.alter_column(
                "fence",
                existing_type=sa.Integer(),
                type_=sa.String(),
                existing_nullable=was_nullable,
                nullable=True,
                postgresql_using="fence::varchar",
            )


def downgrade() -> None:
    # A token is no number: running leases are lost, and events keep no number of their worker's.
    op.execute("UPDATE job SET fence = '0'")
    op.execute("UPDATE job_event SET fence = NULL, worker_seq = NULL")
    for table, nullable in (("job", False), ("job_event", True)):
        with op.batch_alter_table(table) as changed:
            changed.alter_column(
                "fence",
                existing_type=sa.String(),
                type_=sa.Integer(),
                existing_nullable=True,
                nullable=nullable,
                postgresql_using="fence::integer",
            )
