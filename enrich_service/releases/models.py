"""The table of releases, which are stored as the bytes that are served."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from enrich_service.core.storage.database import UtcDateTime, utcnow


class ReleaseRow(SQLModel, table=True):
    """An immutable release; `body` is the JSON of `contract.Release`."""

    __tablename__ = "release"

    id: int | None = Field(default=None, primary_key=True)
    label_set_id: int = Field(foreign_key="label_set.id", index=True)
    name: str = Field(unique=True)
    hash: str = Field(index=True)
    labels: int  # number of labels
    message: str = ""
    author: str = ""
    body: bytes
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
