"""SQL that several modules of this folder send."""

from collections.abc import Iterable

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel, col, select
from sqlmodel.sql.expression import SelectOfScalar

from enrich_service.generations.models import Generation, GenerationStatus

RESULTS = (GenerationStatus.ACCEPTED, GenerationStatus.REJECTED)


def results_for(keys: list[str]) -> SelectOfScalar[Generation]:
    """The results (accepted or rejected) for dedupe keys."""
    return select(Generation).where(
        col(Generation.dedupe_key).in_(keys), col(Generation.status).in_(RESULTS)
    )


def insert_into(dialect: str, table: type[SQLModel]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can have an ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def chunks(keys: Iterable[str], size: int = 500) -> Iterable[list[str]]:
    """SQLite takes a bounded number of parameters."""
    listed = list(keys)
    return (listed[i : i + size] for i in range(0, len(listed), size))
