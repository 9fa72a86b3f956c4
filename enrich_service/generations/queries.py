"""Queries that several modules share."""

from collections.abc import Collection, Iterable

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, and_, col, select

from enrich_service.generations.models import Generation, GenerationSource, GenerationStatus
from enrich_service.labels.models import Label

RESULTS = (GenerationStatus.ACCEPTED, GenerationStatus.REJECTED)
MODEL_SOURCES = (GenerationSource.MODEL, GenerationSource.REPLAY)
HUMAN_SOURCES = (GenerationSource.PERSON, GenerationSource.IMPORT)

# Joins generations to labels: a text belongs to every label of its name and context.
SAME_LABEL = and_(
    col(Generation.label_name) == col(Label.name),
    col(Generation.label_context).is_not_distinct_from(col(Label.context)),
)


def results_of(session: Session, keys: Collection[str]) -> dict[str, Generation]:
    """The results (accepted or rejected) by dedupe key."""
    return {
        row.dedupe_key: row
        for chunk in chunks(keys)
        for row in session.exec(
            select(Generation).where(
                col(Generation.dedupe_key).in_(chunk), col(Generation.status).in_(RESULTS)
            )
        )
        if row.dedupe_key
    }


def insert_into(dialect: str, table: type[SQLModel]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that supports ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def chunks(keys: Iterable[str], size: int = 500) -> Iterable[list[str]]:
    """Chunks of values: SQLite limits the number of parameters."""
    listed = list(keys)
    return (listed[i : i + size] for i in range(0, len(listed), size))
