"""What finished jobs have left and nobody needs any more: named by rules, and taken away.

Notable:
- Rows go first, files after them: what a kill leaves are files without a row, and those go the
  next time. A row without its file never comes of it.
- Equal files are kept once, so a file goes with the last row that names it.
- A file without a row may be about to get one: it stays until nobody has sent it for a day.
"""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Engine, false
from sqlmodel import Session, col, delete, func, not_, select

from contract import EventKind, JobState
from enrich_service.core.database import reading, utcnow, writing
from enrich_service.jobs.models import JobArtifact, JobEvent, JobRow

GRACE_SECONDS: Final = 86_400
WEIGHTS: Final = ".safetensors"
CHATTER: Final = (EventKind.LOG, EventKind.PROGRESS)
_ENDED: Final = [state for state in JobState if state.is_final]


class Left(BaseModel):
    """What the rules name: weights and log lines of finished jobs, files that belong to none."""

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
) -> Left:
    """Count what jobs have left that ended so many days ago, and with `remove` take it away.

    `weights_days`: for students and text banks; `log_days`: for log lines and progress; None keeps
    them all. What a job reached stays: its states, epochs, reports and pictures.
    """
    weights = col(JobArtifact.name).endswith(WEIGHTS) & _ended(JobArtifact.job_id, weights_days)
    lines = col(JobEvent.kind).in_(CHATTER) & _ended(JobEvent.job_id, log_days)
    with writing(engine) if remove else reading(engine) as session:
        left = Left(
            weights=_count(session, JobArtifact, weights),
            log_lines=_count(session, JobEvent, lines),
            files=0,
            bytes=0,
            removed=remove,
        )
        named = set(session.exec(select(JobArtifact.sha256).where(not_(weights)).distinct()))
        if remove:
            session.exec(delete(JobArtifact).where(weights))
            session.exec(delete(JobEvent).where(lines))
    for path in _files(folder):
        status = path.stat()
        if path.name not in named and time.time() - status.st_mtime > GRACE_SECONDS:
            left.files += 1
            left.bytes += status.st_size
            if remove:
                path.unlink(missing_ok=True)
    return left


def _ended(job_id: int, days: float | None) -> ColumnElement[bool]:
    """Whether the job ended at least so many days ago."""
    if days is None:
        return false()
    jobs = select(JobRow.id).where(
        col(JobRow.state).in_(_ENDED), col(JobRow.finished_at) <= utcnow() - timedelta(days=days)
    )
    return col(job_id).in_(jobs)


def _count(session: Session, table: type[JobArtifact | JobEvent], rule: ColumnElement[bool]) -> int:
    return session.exec(select(func.count()).select_from(table).where(rule)).one()


def _files(folder: Path) -> Iterator[Path]:
    """All artifacts that are whole, by their hash."""
    return (path for path in folder.glob("??/*") if path.name.startswith(path.parent.name))
