"""Tables of label sets and their labels."""

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from enrich_service.core.database import UtcDateTime, utcnow


class LabelSet(SQLModel, table=True):
    """A named list of classes."""

    __tablename__ = "label_set"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class Label(SQLModel, table=True):
    """One class: `key` is its folder name, `name` what a person calls it."""

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
