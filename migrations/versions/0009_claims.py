"""What several processes agree on: who asks a question, and how a batch's server is asked."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "generation_claim",
        sa.Column("dedupe_key", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("dedupe_key", name=op.f("pk_generation_claim")),
    )
    with op.batch_alter_table("batch") as batch:
        batch.add_column(
            sa.Column("length_parameter", sa.String(), nullable=False, server_default="max_tokens")
        )
    with op.batch_alter_table("batch") as batch:  # the default was for the rows that were there
        batch.alter_column("length_parameter", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("batch") as batch:
        batch.drop_column("length_parameter")
    op.drop_table("generation_claim")
