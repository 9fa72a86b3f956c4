"""Edits speak the language of what they stand in for; runs over images."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None

_generation = sa.table(
    "generation",
    *(sa.column(name) for name in ("id", "parent_id", "source")),
    sa.column("variables", sa.JSON()),
)


def upgrade() -> None:
    # A person's text in place of a German one is German. Parents are older than their edits, so
    # an edit of an edit finds what its parent has just been given.
    connection = op.get_bind()
    edits = connection.execute(
        sa.select(_generation.c.id, _generation.c.parent_id)
        .where(_generation.c.source == "person", _generation.c.parent_id.is_not(None))
        .order_by(_generation.c.id)
    ).all()
    for edit, parent in edits:
        variables = connection.execute(
            sa.select(_generation.c.variables).where(_generation.c.id == parent)
        ).scalar_one()
        if language := variables.get("language"):
            connection.execute(
                sa.update(_generation)
                .where(_generation.c.id == edit)
                .values(variables={"language": language})
            )


def downgrade() -> None:
    pass  # what edits were given, the older service does not read
