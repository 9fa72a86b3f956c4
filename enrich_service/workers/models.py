"""The table of workers."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON
from sqlmodel import Field, SQLModel

from enrich_service.core.storage.database import UtcDateTime, utcnow


class WorkerRow(SQLModel, table=True):
    """A worker that has requested jobs. `offers`: its data and models, None if not reported."""

    __tablename__ = "worker"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    gpu: bool = False
    memory_gb: float = 0.0
    offers: dict[str, Any] | None = Field(default=None, sa_type=JSON)  # contract.WorkerOffers
    first_seen: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    last_seen: datetime = Field(default_factory=utcnow, index=True, sa_type=UtcDateTime)
