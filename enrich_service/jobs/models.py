"""Tables of training jobs, their events and artifacts."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from contract import EventKind, JobState
from enrich_service.core.storage.database import UtcDateTime, enum_column, utcnow


class JobRow(SQLModel, table=True):
    """A training job. `fence`: fencing token of its newest claim, required from workers."""

    __tablename__ = "job"

    id: int | None = Field(default=None, primary_key=True)
    release_id: int | None = Field(default=None, foreign_key="release.id", index=True)
    after_run: int | None = Field(default=None, foreign_key="run.id", index=True)
    config: dict[str, Any] = Field(sa_type=JSON)  # contract.TrainConfig
    priority: int = 0
    state: JobState = Field(default=JobState.QUEUED, index=True, sa_type=enum_column(JobState))
    attempts: int = 0
    max_attempts: int = 3
    needs_gpu: bool = False
    needs_memory_gb: float = 0.0
    shrink_batch: bool = False
    fence: str | None = None
    cancel_requested: bool = False
    worker: str | None = None
    lease_expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    error: str | None = None
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class JobEvent(SQLModel, table=True):
    """One event of a job; the service assigns `seq`: 1, 2, 3 … without gaps."""

    __tablename__ = "job_event"
    __table_args__ = (
        UniqueConstraint("job_id", "seq"),
        UniqueConstraint("job_id", "fence", "worker_seq"),
    )

    id: int | None = Field(default=None, primary_key=True)
    job_id: int = Field(foreign_key="job.id")
    seq: int
    # Numbered by the worker within its lease, so that a request repeated after a lost response is
    # stored once. None for events of the service.
    fence: str | None = None
    worker_seq: int | None = None
    kind: EventKind = Field(sa_type=enum_column(EventKind))
    data: dict[str, Any] = Field(sa_type=JSON)
    at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class JobArtifact(SQLModel, table=True):
    """A file of a job, stored in the artifact folder under its SHA-256.

    `pinned`: pruning keeps it, because a registered student needs it.
    """

    __tablename__ = "job_artifact"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: int | None = Field(default=None, primary_key=True)
    job_id: int = Field(foreign_key="job.id")
    name: str  # report.json, report.html, student.safetensors, …
    media_type: str
    sha256: str
    size: int  # bytes
    pinned: bool = False
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
