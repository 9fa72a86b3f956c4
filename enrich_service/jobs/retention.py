"""Deletion of weights, log lines and files of finished jobs.

Notable:
- Rows are deleted before files: after a crash there may be files without a row, which the next run
  deletes, but never rows without a file.
- Equal files are stored once, so a file is deleted with the last row that references it.
- A pinned artifact is kept: a registered student needs it.
- A file without a row may be an upload in progress: it is kept for a day.
"""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Engine, false
from sqlmodel import Session, col, delete, func, not_, or_, select

from contract import EventKind, JobState
from enrich_service.core.storage.database import reading, utcnow, writing
from enrich_service.jobs.models import JobArtifact, JobEvent, JobRow

GRACE_S: Final = 86_400  # age of a file without a row
WEIGHTS: Final = (".safetensors", ".zip")
MINOR_EVENTS: Final = (EventKind.LOG, EventKind.PROGRESS)
_ENDED: Final = [state for state in JobState if state.is_final]


class PruneResult(BaseModel):
    """Number of weight files and log lines of finished jobs, and of files without a job."""

    weights: int
    log_lines: int
    files: int
    bytes: int
    removed: bool


def prune(
    engine: Engine,
    folder: Path,
    *,
    weights_days: float | None,
    log_days: float | None,
    remove: bool,
) -> PruneResult:
    """Count the data of jobs that finished the given number of days ago; `remove` deletes it.

    `weights_days` applies to students, text banks and classifiers that are not registered,
    `log_days` to log lines and progress; None keeps them. States, epochs, reports and images are
    always kept.
    """
    weights = (
        or_(*(col(JobArtifact.name).endswith(ending) for ending in WEIGHTS))
        & col(JobArtifact.pinned).is_(False)
        & _ended(JobArtifact.job_id, weights_days)
    )
    lines = col(JobEvent.kind).in_(MINOR_EVENTS) & _ended(JobEvent.job_id, log_days)
    with writing(engine) if remove else reading(engine) as session:
        result = PruneResult(
            weights=_count(session, JobArtifact, weights),
            log_lines=_count(session, JobEvent, lines),
            files=0,
            bytes=0,
            removed=remove,
        )
        referenced = set(session.exec(select(JobArtifact.sha256).where(not_(weights)).distinct()))
        if remove:
            session.exec(delete(JobArtifact).where(weights))
            session.exec(delete(JobEvent).where(lines))
    for path in _files(folder):
        status = path.stat()
        if path.name not in referenced and time.time() - status.st_mtime > GRACE_S:
            result.files += 1
            result.bytes += status.st_size
            if remove:
                path.unlink(missing_ok=True)
    return result


def _ended(job_id: int, days: float | None) -> ColumnElement[bool]:
    """Whether the job finished at least `days` ago."""
    if days is None:
        return false()
    jobs = select(JobRow.id).where(
        col(JobRow.state).in_(_ENDED), col(JobRow.finished_at) <= utcnow() - timedelta(days=days)
    )
    return col(job_id).in_(jobs)


def _count(
    session: Session, table: type[JobArtifact | JobEvent], condition: ColumnElement[bool]
) -> int:
    return session.exec(select(func.count()).select_from(table).where(condition)).one()


def _files(folder: Path) -> Iterator[Path]:
    """All complete artifacts."""
    return (path for path in folder.glob("??/*") if path.name.startswith(path.parent.name))
