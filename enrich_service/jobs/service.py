"""Jobs: a queue that people and workers see alike.

A worker holds a job by a lease that it must renew. Its `fence` counts the claims of the job: what
comes with an older one is refused, so a worker that slept through the end of its lease can spoil
nothing. The service's own events and the workers' are numbered in one sequence without gaps.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from contract import Event, EventKind, Job, JobState, Lease, TrainConfig
from enrich_service.core.database import utcnow
from enrich_service.core.errors import Conflict, LeaseLost, NotFound
from enrich_service.core.text import check_line, check_text
from enrich_service.jobs.models import JobEvent, JobRow
from enrich_service.jobs.schemas import EventIn
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow

HELD = (JobState.LEASED, JobState.RUNNING)
MAX_ERROR = 2000  # characters


def create(
    session: Session,
    release_id: int,
    config: TrainConfig,
    *,
    priority: int = 0,
    max_attempts: int = 3,
) -> JobRow:
    """Put a job into the queue. Raises NotFound without its release."""
    release_service.get(session, release_id)
    row = JobRow(
        release_id=release_id,
        config=config.model_dump(mode="json"),
        priority=priority,
        max_attempts=max_attempts,
    )
    session.add(row)
    session.flush()
    _tell_state(session, row)
    return row


def get(session: Session, job_id: int, *, lock: bool = False) -> JobRow:
    """The job with this id; else NotFound. `lock`: nobody else changes it in this transaction."""
    row = session.get(JobRow, job_id, with_for_update=lock)
    if row is None:
        raise NotFound(f"There is no job {job_id}. GET /v1/jobs lists them.")
    return row


def view(session: Session, row: JobRow) -> Job:
    """`row` as it crosses the wire."""
    digest = session.exec(select(ReleaseRow.hash).where(ReleaseRow.id == row.release_id)).one()
    return Job(release_hash=digest, **row.model_dump(exclude={"fence"}))


def listing(
    session: Session,
    *,
    state: JobState | None = None,
    release_id: int | None = None,
    limit: int | None = 100,
    offset: int = 0,
) -> list[Job]:
    """Jobs, the newest first."""
    query = (
        select(JobRow, ReleaseRow.hash)
        .join(ReleaseRow, col(ReleaseRow.id) == col(JobRow.release_id))
        .order_by(col(JobRow.id).desc())
        .limit(limit)
        .offset(offset)
    )
    if state is not None:
        query = query.where(JobRow.state == state)
    if release_id is not None:
        query = query.where(JobRow.release_id == release_id)
    return [
        Job(release_hash=digest, **row.model_dump(exclude={"fence"}))
        for row, digest in session.exec(query)
    ]


def cancel(session: Session, job_id: int) -> JobRow:
    """Cancel a job: at once where no worker holds it, else the worker is told to stop.

    Raises Conflict where the job has succeeded or failed; cancelling twice is no error.
    """
    row = get(session, job_id, lock=True)
    if row.state in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(f"Job {job_id} has {row.state.value} already.")
    if row.state is JobState.CANCELLED:
        return row
    row.cancel_requested = True
    if row.state is JobState.QUEUED or _has_expired(row, utcnow()):
        _end(session, row, JobState.CANCELLED)
    session.add(row)
    session.flush()
    return row


def claim(session: Session, worker: str, lease_seconds: float) -> Lease | None:
    """Give `worker` the most urgent job that waits, or None. Leases that ended are taken back."""
    worker = check_line("The worker's name", worker, limit=200)
    now = utcnow()
    _take_back(session, now)
    waiting = (
        select(JobRow.id)
        .where(JobRow.state == JobState.QUEUED)
        .order_by(col(JobRow.priority).desc(), col(JobRow.id))
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; in SQLite there is one writer anyway
        .scalar_subquery()
    )
    expires = now + timedelta(seconds=lease_seconds)
    claimed = session.execute(
        sa.update(JobRow)
        .where(col(JobRow.id) == waiting)
        .values(
            state=JobState.LEASED,
            worker=worker,
            fence=JobRow.fence + 1,
            attempts=JobRow.attempts + 1,
            lease_expires_at=expires,
        )
        .returning(col(JobRow.id))
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if claimed is None:
        return None
    session.expire_all()
    row = get(session, claimed)
    _tell_state(session, row, worker=worker, attempt=row.attempts)
    release = release_service.parsed(release_service.get(session, row.release_id))
    return Lease(job=view(session, row), release=release, fence=row.fence, expires_at=expires)


def _take_back(session: Session, now: datetime) -> None:
    """Put jobs whose lease has ended back into the queue, or end them."""
    expired = session.exec(
        select(JobRow)
        .where(col(JobRow.state).in_(HELD), col(JobRow.lease_expires_at) < now)
        .with_for_update(skip_locked=True)
    ).all()
    for row in expired:
        worker = row.worker
        if row.cancel_requested:
            _end(session, row, JobState.CANCELLED)
        elif row.attempts >= row.max_attempts:
            _end(
                session,
                row,
                JobState.FAILED,
                f"Worker {worker!r} fell silent in the last of {row.max_attempts} attempts.",
            )
        else:
            row.state, row.worker, row.lease_expires_at = JobState.QUEUED, None, None
            _tell_state(session, row, reason=f"the lease of worker {worker!r} ended")
        session.add(row)
    session.flush()


def _has_expired(row: JobRow, now: datetime) -> bool:
    return row.lease_expires_at is not None and row.lease_expires_at < now


def held(session: Session, job_id: int, fence: int) -> JobRow:
    """The job, locked, if `fence` is that of its living lease; else LeaseLost."""
    row = get(session, job_id, lock=True)
    if row.state.is_final:
        raise LeaseLost(f"Job {job_id} has ended ({row.state.value}): stop working on it.")
    if row.fence != fence or row.state not in HELD or _has_expired(row, utcnow()):
        raise LeaseLost(f"The lease {fence} of job {job_id} has ended: stop working on it.")
    return row


def _start(session: Session, row: JobRow) -> None:
    if row.state is JobState.LEASED:
        row.state = JobState.RUNNING
        row.started_at = row.started_at or utcnow()
        session.add(row)
        _tell_state(session, row, worker=row.worker)


def heartbeat(session: Session, job_id: int, fence: int, lease_seconds: float) -> JobRow:
    """Renew a lease. Raises LeaseLost."""
    row = held(session, job_id, fence)
    row.lease_expires_at = utcnow() + timedelta(seconds=lease_seconds)
    session.add(row)
    _start(session, row)
    session.flush()
    return row


def add_events(session: Session, job_id: int, fence: int, events: Sequence[EventIn]) -> int:
    """Append a worker's events in order, those left out that are there; how many were new.

    Raises LeaseLost.
    """
    row = held(session, job_id, fence)
    _start(session, row)
    stored = set(
        session.exec(
            select(JobEvent.worker_seq).where(
                JobEvent.job_id == job_id,
                JobEvent.fence == fence,
                col(JobEvent.worker_seq).in_([event.worker_seq for event in events]),
            )
        )
    )
    seq = _last_seq(session, job_id)
    new: list[dict[str, Any]] = []
    for event in events:
        if event.worker_seq not in stored:
            stored.add(event.worker_seq)
            new.append(
                {
                    "job_id": job_id,
                    "seq": seq + len(new) + 1,
                    "fence": fence,
                    "worker_seq": event.worker_seq,
                    "kind": event.kind,
                    "data": event.data,
                    "at": event.at or utcnow(),
                }
            )
    if new:
        session.execute(sa.insert(JobEvent), new)
    return len(new)


def finish(
    session: Session, job_id: int, fence: int, state: JobState, error: str | None = None
) -> JobRow:
    """End a job as its worker says. Saying it again is no error. Raises LeaseLost."""
    row = get(session, job_id, lock=True)
    if row.state is state and row.fence == fence:
        return row  # the answer to the first time was lost
    row = held(session, job_id, fence)
    error = error and check_text("The error", error[:MAX_ERROR], limit=MAX_ERROR)
    row.started_at = row.started_at or utcnow()
    _end(session, row, state, error)
    session.add(row)
    session.flush()
    return row


def _end(session: Session, row: JobRow, state: JobState, error: str | None = None) -> None:
    row.state = state
    row.error = error
    row.lease_expires_at = None
    row.finished_at = utcnow()
    _tell_state(session, row, **({"error": error} if error else {}))


def _last_seq(session: Session, job_id: int) -> int:
    query = select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)
    return session.exec(query).one() or 0


def _tell_state(session: Session, row: JobRow, **data: Any) -> None:  # noqa: ANN401 - any JSON
    assert row.id is not None
    session.add(
        JobEvent(
            job_id=row.id,
            seq=_last_seq(session, row.id) + 1,
            kind=EventKind.STATE,
            data={"state": row.state.value, **data},
        )
    )
    session.flush()


def events(
    session: Session, job_id: int, *, after: int = 0, limit: int | None = 1000
) -> list[Event]:
    """Events of a job with a sequence number above `after`, in order."""
    found = session.exec(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.seq > after)
        .order_by(col(JobEvent.seq))
        .limit(limit)
    )
    return [_event(row) for row in found]


def last_events(session: Session, job_id: int, *kinds: EventKind, limit: int = 1) -> list[Event]:
    """The newest events of a job that are of one of these kinds, in order."""
    found = session.exec(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, col(JobEvent.kind).in_(kinds))
        .order_by(col(JobEvent.seq).desc())
        .limit(limit)
    ).all()
    return [_event(row) for row in reversed(found)]


def _event(row: JobEvent) -> Event:
    return Event(seq=row.seq, kind=row.kind, data=row.data, at=row.at)
