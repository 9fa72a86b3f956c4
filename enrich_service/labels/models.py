"""Tables of label sets and their labels."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from enrich_service.core.storage.database import UtcDateTime, utcnow


class LabelSet(SQLModel, table=True):
    """A named list of classes."""

    __tablename__ = "label_set"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class Label(SQLModel, table=True):
    """One class: `key` is its folder name, `name` its human-readable name."""

    __tablename__ = "label"
    __table_args__ = (
        UniqueConstraint("label_set_id", "key"),
        UniqueConstraint("label_set_id", "position"),
    )

    id: int | None = Field(default=None, primary_key=True)
    label_set_id: int = Field(foreign_key="label_set.id")
    position: int
    key: str
    name: str
    context: str | None = None


class LabelLine(NamedTuple):
    """A read-only label; cheaper to load than an ORM object."""

    id: int | None
    key: str
    name: str
    context: str | None


class ConfusableLabel(SQLModel, table=True):
    """`label_id` is easily confused with `other_id`, of the same set. Rank 0: most similar."""

    __tablename__ = "confusable_label"
    __table_args__ = (UniqueConstraint("label_id", "other_id"),)

    label_id: int = Field(foreign_key="label.id", primary_key=True)
    rank: int = Field(primary_key=True)
    other_id: int = Field(foreign_key="label.id", index=True)
