"""Tables of students, their immutable versions, and the aliases that move between them."""

from datetime import datetime

from sqlalchemy import BigInteger, UniqueConstraint
from sqlmodel import Field, SQLModel

from enrich_service.core.storage.database import UtcDateTime, utcnow


class Student(SQLModel, table=True):
    """A name for the versions of a classifier."""

    __tablename__ = "student"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class StudentVersion(SQLModel, table=True):
    """An immutable version of a student: the classifier of a job, with figures of its report."""

    __tablename__ = "student_version"
    __table_args__ = (
        UniqueConstraint("student_id", "number"),
        UniqueConstraint("student_id", "job_id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    student_id: int = Field(foreign_key="student.id")
    number: int
    job_id: int = Field(foreign_key="job.id", index=True)
    artifact_id: int = Field(foreign_key="job_artifact.id", index=True)
    sha256: str  # of classifier.zip
    size: int  # bytes of classifier.zip
    seen: float | None = None  # top-1 in percent, as the next two
    unseen: float | None = None
    joint_harmonic_mean: float | None = None
    parameters: int | None = Field(default=None, sa_type=BigInteger)
    latency_ms: float | None = None
    message: str = ""
    author: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class StudentAlias(SQLModel, table=True):
    """A movable name such as `production` that points at one version of a student."""

    __tablename__ = "student_alias"
    __table_args__ = (UniqueConstraint("student_id", "name"),)

    id: int | None = Field(default=None, primary_key=True)
    student_id: int = Field(foreign_key="student.id")
    name: str
    version_id: int = Field(foreign_key="student_version.id")


class StudentAliasMove(SQLModel, table=True):
    """The log of an alias; a rollback is a move too."""

    __tablename__ = "student_alias_move"

    id: int | None = Field(default=None, primary_key=True)
    student_id: int = Field(foreign_key="student.id", index=True)
    name: str
    from_number: int | None
    to_number: int
    reason: str
    author: str = ""
    at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
