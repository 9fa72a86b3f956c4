"""The job queue: creation, leases, events.

A worker holds a job by a lease that it must renew. The next claim by any worker expires leases
that are overdue; until then an overdue lease may still be renewed. Each claim creates a random
fencing token (`fence`). Requests with another token are rejected, so a worker whose lease has
expired cannot change the job. Events of the service and of workers share one sequence without gaps.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from secrets import compare_digest, token_urlsafe
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from contract import Event, EventKind, Job, JobCreate, JobState, Lease, Needs, TrainConfig
from enrich_service.core.errors import Conflict, LeaseLost, NoSuch, UserError
from enrich_service.core.storage.database import utcnow
from enrich_service.generations.models import Run, RunState, language_of
from enrich_service.jobs.left_to_others import left_to_others
from enrich_service.jobs.models import JobEvent, JobRow
from enrich_service.jobs.schemas import MAX_ERROR, EventIn
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource
from enrich_service.runs import service as runs

HELD = (JobState.LEASED, JobState.RUNNING)
MIN_BATCH_SIZE = 2  # as in contract.TrainConfig
_UNSUCCESSFUL = (RunState.FAILED, RunState.CANCELLED)


def create(session: Session, body: JobCreate) -> JobRow:
    """Queue a job for a release, or for the release of a run that has not finished yet.

    Raises NotFound if the release or run does not exist, Conflict if the run has failed.
    """
    if body.release_id is not None:
        release_service.get(session, body.release_id)
    if body.after_run is not None:
        run = runs.get_run(session, body.after_run)
        if run.state in _UNSUCCESSFUL:
            raise Conflict(f"Run {body.after_run} has {run.state}: retry it first.")
    row = JobRow(
        release_id=body.release_id,
        after_run=body.after_run,
        config=body.config.model_dump(mode="json"),
        priority=body.priority,
        max_attempts=body.max_attempts,
        needs_gpu=body.needs.gpu,
        needs_memory_gb=body.needs.memory_gb,
        shrink_batch=body.shrink_batch,
    )
    session.add(row)
    session.flush()
    _add_state_event(session, row, **({"waits_for_run": body.after_run} if body.after_run else {}))
    return row


def get(session: Session, job_id: int) -> JobRow:
    """The job with this id. Raises NotFound."""
    row = session.get(JobRow, job_id)
    if row is None:
        raise NoSuch(f"job {job_id}", "jobs list", "/v1/jobs")
    return row


def view(session: Session, row: JobRow) -> Job:
    """The API schema of `row`."""
    query = select(ReleaseRow.hash).where(ReleaseRow.id == row.release_id)
    return _view(row, session.exec(query).one_or_none())


def _view(row: JobRow, release_hash: str | None) -> Job:
    needs = Needs(gpu=row.needs_gpu, memory_gb=row.needs_memory_gb)
    return Job(release_hash=release_hash, needs=needs, **row.model_dump(exclude={"fence"}))


def listing(
    session: Session,
    *,
    state: JobState | None = None,
    release_id: int | None = None,
    limit: int | None = 100,
    offset: int = 0,
) -> list[Job]:
    """Jobs, newest first."""
    query = (
        select(JobRow, ReleaseRow.hash)
        .join(ReleaseRow, col(ReleaseRow.id) == col(JobRow.release_id), isouter=True)
        .order_by(col(JobRow.id).desc())
        .limit(limit)
        .offset(offset)
    )
    if state is not None:
        query = query.where(JobRow.state == state)
    if release_id is not None:
        query = query.where(JobRow.release_id == release_id)
    return [_view(row, digest) for row, digest in session.exec(query)]


def held_jobs(session: Session) -> dict[str, int]:
    """The job that each worker holds, by the worker's name."""
    query = select(JobRow.worker, JobRow.id).where(col(JobRow.state).in_(HELD))
    return {name: job_id for name, job_id in session.exec(query) if name and job_id is not None}


def cancel(session: Session, job_id: int) -> JobRow:
    """Cancel a job: immediately if no worker holds it, else request its worker to stop.

    Idempotent. Raises Conflict if the job has succeeded or failed.
    """
    row = get(session, job_id)
    if row.state in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(f"Job {job_id} has already {row.state.value}.")
    if row.state is JobState.CANCELLED:
        return row
    row.cancel_requested = True
    if row.state is JobState.QUEUED or _has_expired(row, utcnow()):
        _end(session, row, JobState.CANCELLED)
    session.add(row)
    session.flush()
    return row


def retry(session: Session, job_id: int) -> JobRow:
    """Queue a failed or cancelled job again, with a new count of attempts.

    The job resumes from its last checkpoint. Raises Conflict if it is in another state.
    """
    row = get(session, job_id)
    if row.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(
            f"Job {job_id} is {row.state}: only failed and cancelled jobs can be retried."
        )
    row.attempts, row.cancel_requested, row.finished_at, row.error = 0, False, None, None
    _queue_again(session, row, "retried by a user")
    return row


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    *,
    gpu: bool = False,
    memory_gb: float = 0.0,
) -> Lease | None:
    """Lease the queued job of highest priority whose needs `worker` meets; None if there is none.

    Jobs that it cannot do and another running worker can are left to that one. Expires overdue
    leases first, and creates the releases of finished runs that jobs wait for.
    """
    now = utcnow()
    _expire_leases(session, now)
    _create_awaited_releases(session)
    queue = (
        select(JobRow)
        .where(
            JobRow.state == JobState.QUEUED,
            col(JobRow.release_id).is_not(None),
            sa.or_(sa.not_(col(JobRow.needs_gpu)), sa.literal(gpu)),
            col(JobRow.needs_memory_gb) <= memory_gb,
        )
        .order_by(col(JobRow.priority).desc(), col(JobRow.id))
    )
    left = left_to_others(session, queue, worker, lease_seconds)
    next_job = (
        queue.with_only_columns(col(JobRow.id))
        .where(col(JobRow.id).not_in(left))
        .limit(1)
        .scalar_subquery()
    )
    expires = now + timedelta(seconds=lease_seconds)
    claimed = session.execute(
        sa.update(JobRow)
        .where(col(JobRow.id) == next_job)
        .values(
            state=JobState.LEASED,
            worker=worker,
            fence=token_urlsafe(16),
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
    _add_state_event(session, row, worker=worker, attempt=row.attempts)
    assert row.release_id is not None and row.fence is not None
    release = release_service.parsed(release_service.get(session, row.release_id))
    return Lease(
        job=view(session, row),
        release=release,
        fence=row.fence,
        seconds=lease_seconds,
        expires_at=expires,
    )


def adjust_leases(session: Session, lease_seconds: float) -> None:
    """Limit every lease to between half and all of `lease_seconds` from now.

    Called when the service starts or the clock was set: leases could not be renewed meanwhile, or
    would last too long. Workers renew a lease after a third of its duration.
    """
    ends, duration = col(JobRow.lease_expires_at), timedelta(seconds=lease_seconds)
    held = sa.update(JobRow).where(col(JobRow.state).in_(HELD))
    now = utcnow()
    session.execute(
        held.where(ends < now + duration / 2).values(lease_expires_at=now + duration / 2)
    )
    session.execute(held.where(ends > now + duration).values(lease_expires_at=now + duration))


def _create_awaited_releases(session: Session) -> None:
    """Create the releases of finished runs that jobs wait for. If a run failed, its jobs fail."""
    waiting = session.exec(
        select(JobRow, Run)
        .join(Run, col(Run.id) == col(JobRow.after_run))
        .where(
            JobRow.state == JobState.QUEUED,
            col(JobRow.release_id).is_(None),
            col(Run.state).in_((RunState.SUCCEEDED, *_UNSUCCESSFUL)),
        )
    ).all()
    for row, run in waiting:
        if run.state in _UNSUCCESSFUL:
            _end(session, row, JobState.FAILED, f"Run {run.id} has {run.state}: {run.error or ''}")
        else:
            try:
                row.release_id = _release_of(session, run)
            except UserError as error:
                message = f"No release of run {run.id}: {error}"
                _end(session, row, JobState.FAILED, message[:MAX_ERROR])
            else:
                _add_state_event(session, row, release=row.release_id)
        session.add(row)
    session.flush()


def _release_of(session: Session, run: Run) -> int | None:
    """The release of the texts of `run`, shared by all jobs that wait for it."""
    view_of_run = runs.run_view(session, run)
    source = ReleaseSource(prompt=view_of_run.prompt, version=view_of_run.prompt_version)
    row, _ = release_service.create(
        session,
        ReleaseCreate(
            label_set=view_of_run.label_set,
            name=f"run-{run.id}",
            sources=[source],
            languages=[language_of(run)],
            message=f"Texts of run {run.id}",
        ),
    )
    return row.id


def _expire_leases(session: Session, now: datetime) -> None:
    """Queue jobs with overdue leases again, or end them."""
    expired = session.exec(
        select(JobRow).where(col(JobRow.state).in_(HELD), col(JobRow.lease_expires_at) < now)
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
                f"The lease of worker {worker!r} expired in attempt {row.attempts}, the last one.",
            )
        else:
            _queue_again(session, row, f"the lease of worker {worker!r} expired")
        session.add(row)
    session.flush()


def _queue_again(session: Session, row: JobRow, reason: str) -> None:
    row.state, row.worker, row.lease_expires_at = JobState.QUEUED, None, None
    session.add(row)
    _add_state_event(session, row, reason=reason)


def _has_expired(row: JobRow, now: datetime) -> bool:
    return row.lease_expires_at is not None and row.lease_expires_at < now


def held(session: Session, job_id: int, fence: str) -> JobRow:
    """The job, if the lease with the token `fence` is valid. Raises LeaseLost."""
    row = get(session, job_id)
    if row.state.is_final:
        raise LeaseLost(f"Job {job_id} is finished ({row.state.value}): stop working on it.")
    if row.state not in HELD or not _is_lease_of(row, fence):
        raise LeaseLost(f"The lease of job {job_id} has expired: stop working on it.")
    return row


def _is_lease_of(row: JobRow, fence: str) -> bool:
    return row.fence is not None and compare_digest(row.fence.encode(), fence.encode())


def _start(session: Session, row: JobRow) -> None:
    if row.state is JobState.LEASED:
        row.state = JobState.RUNNING
        row.started_at = row.started_at or utcnow()
        session.add(row)
        _add_state_event(session, row, worker=row.worker)


def heartbeat(session: Session, job_id: int, fence: str, lease_seconds: float) -> JobRow:
    """Renew a lease. Raises LeaseLost."""
    row = held(session, job_id, fence)
    row.lease_expires_at = utcnow() + timedelta(seconds=lease_seconds)
    session.add(row)
    _start(session, row)
    session.flush()
    return row


def add_events(session: Session, job_id: int, fence: str, events: Sequence[EventIn]) -> int:
    """Append a worker's events in order, without duplicates. Returns the number of new events.

    A worker that resumes a job also sends the unsent events of its previous worker. Raises
    LeaseLost.
    """
    row = held(session, job_id, fence)
    _start(session, row)
    stored = set(
        session.exec(
            select(JobEvent.fence, JobEvent.worker_seq).where(
                JobEvent.job_id == job_id,
                col(JobEvent.fence).in_({event.fence or fence for event in events}),
                col(JobEvent.worker_seq).in_([event.worker_seq for event in events]),
            )
        )
    )
    seq = _last_seq(session, job_id)
    new: list[dict[str, Any]] = []
    for event in events:
        event_fence = event.fence or fence
        if (event_fence, event.worker_seq) not in stored:
            stored.add((event_fence, event.worker_seq))
            new.append(
                {
                    "job_id": job_id,
                    "seq": seq + len(new) + 1,
                    "fence": event_fence,
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
    session: Session,
    job_id: int,
    fence: str,
    state: JobState,
    error: str | None = None,
    *,
    out_of_memory: bool = False,
) -> JobRow:
    """Finish a job. Idempotent. Raises LeaseLost.

    If it ran out of memory, the error suggests half the batch size. With `shrink_batch` and an
    attempt left, the job is instead queued again with that size, unless its cancellation was
    requested.
    """
    row = get(session, job_id)
    if row.state is state and _is_lease_of(row, fence):
        return row  # a repeated request
    row = held(session, job_id, fence)
    row.started_at = row.started_at or utcnow()
    if state is JobState.FAILED and out_of_memory:
        batch_size = TrainConfig.model_validate(row.config).batch_size
        smaller = max(MIN_BATCH_SIZE, batch_size // 2)
        if smaller == batch_size:
            error = f"out of memory even with a batch_size of {batch_size}"
        elif not row.shrink_batch or row.attempts >= row.max_attempts or row.cancel_requested:
            error = f"out of memory with a batch_size of {batch_size}: try {smaller}"
        else:
            row.config = {**row.config, "batch_size": smaller}
            reason = f"out of memory with a batch_size of {batch_size}: trying {smaller}"
            _queue_again(session, row, reason)
            return row
        if row.cancel_requested:
            state = JobState.CANCELLED
    _end(session, row, state, error)
    session.add(row)
    session.flush()
    return row


def _end(session: Session, row: JobRow, state: JobState, error: str | None = None) -> None:
    row.state = state
    row.error = error
    row.lease_expires_at = None
    row.finished_at = utcnow()
    _add_state_event(session, row, **({"error": error} if error else {}))


def _last_seq(session: Session, job_id: int) -> int:
    query = select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)
    return session.exec(query).one() or 0


def _add_state_event(session: Session, row: JobRow, **data: Any) -> None:  # noqa: ANN401 - any JSON
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
    """Events of a job with a seq above `after`, in order."""
    rows = session.exec(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.seq > after)
        .order_by(col(JobEvent.seq))
        .limit(limit)
    )
    return [_event(row) for row in rows]


def last_events(session: Session, job_id: int, *kinds: EventKind, limit: int = 1) -> list[Event]:
    """The newest events of a job of these kinds, in order."""
    rows = session.exec(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, col(JobEvent.kind).in_(kinds))
        .order_by(col(JobEvent.seq).desc())
        .limit(limit)
    ).all()
    return [_event(row) for row in reversed(rows)]


def _event(row: JobEvent) -> Event:
    # Data that is not an object is shown as text, so that it cannot break a page.
    data: Any = row.data
    is_object = isinstance(data, dict)
    return Event(
        seq=row.seq, kind=row.kind, data=data if is_object else {"message": str(data)}, at=row.at
    )
