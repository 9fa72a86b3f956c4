"""Jobs: a queue that people and workers see alike.

A worker holds a job by a lease that it must renew. When the lease's time is over, the next worker
that asks for work takes the job; until then the first may still renew it. Each claim makes a random
`fence`: what comes with another one is refused, so neither a worker that slept through the end of
its lease nor one that guesses can change the job. The service's own events and the workers' are
numbered in one sequence without gaps.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from secrets import compare_digest, token_urlsafe
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from contract import Event, EventKind, Job, JobState, Lease, Needs, TrainConfig
from enrich_service.core.database import utcnow
from enrich_service.core.errors import Conflict, LeaseLost, NoSuch, UserError
from enrich_service.core.text import escaped
from enrich_service.generations.models import Run, RunState, language_of
from enrich_service.jobs.models import JobEvent, JobRow
from enrich_service.jobs.schemas import MAX_ERROR, EventIn
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource
from enrich_service.runs import service as runs

HELD = (JobState.LEASED, JobState.RUNNING)
SMALLEST_BATCH = 2  # contract.TrainConfig takes no smaller one
_FRUITLESS = (RunState.FAILED, RunState.CANCELLED)


def create(
    session: Session,
    release_id: int | None,
    config: TrainConfig,
    *,
    after_run: int | None = None,
    priority: int = 0,
    max_attempts: int = 3,
    needs: Needs = Needs(),  # noqa: B008 - frozen
    shrink_batch: bool = False,
) -> JobRow:
    """Put a job into the queue, for a release or for what a run will have given.

    Raises NotFound without that release or run, Conflict where the run has failed.
    """
    if release_id is not None:
        release_service.get(session, release_id)
    if after_run is not None:
        run = runs.get_run(session, after_run)
        if run.state in _FRUITLESS:
            raise Conflict(f"Run {after_run} has {run.state}: retry it first.")
    row = JobRow(
        release_id=release_id,
        after_run=after_run,
        config=config.model_dump(mode="json"),
        priority=priority,
        max_attempts=max_attempts,
        needs_gpu=needs.gpu,
        needs_memory_gb=needs.memory_gb,
        shrink_batch=shrink_batch,
    )
    session.add(row)
    session.flush()
    _tell_state(session, row, **({"waits_for_run": after_run} if after_run else {}))
    return row


def get(session: Session, job_id: int) -> JobRow:
    """The job with this id; else NotFound."""
    row = session.get(JobRow, job_id)
    if row is None:
        raise NoSuch(f"job {job_id}", "jobs list", "/v1/jobs")
    return row


def view(session: Session, row: JobRow) -> Job:
    """`row` as it crosses the wire."""
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
    """Jobs, the newest first."""
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


def cancel(session: Session, job_id: int) -> JobRow:
    """Cancel a job: at once where no worker holds it, else the worker is told to stop.

    Raises Conflict where the job has succeeded or failed; cancelling twice is no error.
    """
    row = get(session, job_id)
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


def retry(session: Session, job_id: int) -> JobRow:
    """Put a job that failed or was cancelled into the queue again, with all its attempts.

    It goes on from its last checkpoint. Raises Conflict where it has not ended, or succeeded.
    """
    row = get(session, job_id)
    if row.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"Job {job_id} is {row.state}: only failed and cancelled jobs are retried.")
    row.attempts, row.cancel_requested, row.finished_at, row.error = 0, False, None, None
    _queue_again(session, row, "a person asked for it")
    return row


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    *,
    gpu: bool = False,
    memory_gb: float = 0.0,
) -> Lease | None:
    """Give `worker` the most urgent job that waits and that it has enough for, or None.

    Leases that ended are taken back first, and runs that ended give their jobs a release.
    """
    now = utcnow()
    _take_back(session, now)
    _release_runs(session)
    waiting = (
        select(JobRow.id)
        .where(
            JobRow.state == JobState.QUEUED,
            col(JobRow.release_id).is_not(None),
            sa.or_(sa.not_(col(JobRow.needs_gpu)), sa.literal(gpu)),
            col(JobRow.needs_memory_gb) <= memory_gb,
        )
        .order_by(col(JobRow.priority).desc(), col(JobRow.id))
        .limit(1)
        .scalar_subquery()
    )
    expires = now + timedelta(seconds=lease_seconds)
    claimed = session.execute(
        sa.update(JobRow)
        .where(col(JobRow.id) == waiting)
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
    _tell_state(session, row, worker=worker, attempt=row.attempts)
    assert row.release_id is not None and row.fence is not None
    release = release_service.parsed(release_service.get(session, row.release_id))
    return Lease(
        job=view(session, row),
        release=release,
        fence=row.fence,
        seconds=lease_seconds,
        expires_at=expires,
    )


def put_leases_right(session: Session, lease_seconds: float) -> None:
    """Let no lease end before its worker can renew it, nor last for longer than a whole one.

    For when nobody could renew them, or the clock was set. Workers renew after a third.
    """
    ends, whole = col(JobRow.lease_expires_at), timedelta(seconds=lease_seconds)
    held = sa.update(JobRow).where(col(JobRow.state).in_(HELD))
    now = utcnow()
    session.execute(held.where(ends < now + whole / 2).values(lease_expires_at=now + whole / 2))
    session.execute(held.where(ends > now + whole).values(lease_expires_at=now + whole))


def _release_runs(session: Session) -> None:
    """Give the jobs whose run has ended its release; a run that brought nothing fails them."""
    waiting = session.exec(
        select(JobRow, Run)
        .join(Run, col(Run.id) == col(JobRow.after_run))
        .where(
            JobRow.state == JobState.QUEUED,
            col(JobRow.release_id).is_(None),
            col(Run.state).in_((RunState.SUCCEEDED, *_FRUITLESS)),
        )
    ).all()
    for row, run in waiting:
        if run.state in _FRUITLESS:
            _end(session, row, JobState.FAILED, f"Run {run.id} has {run.state}: {run.error or ''}")
        else:
            try:
                row.release_id = _release_of(session, run)
            except UserError as error:
                said = f"Run {run.id} gives no release: {error}"
                _end(session, row, JobState.FAILED, said[:MAX_ERROR])
            else:
                _tell_state(session, row, release=row.release_id)
        session.add(row)
    session.flush()


def _release_of(session: Session, run: Run) -> int | None:
    """The release of what `run` gave: named after it, the same for all its jobs."""
    seen = runs.run_view(session, run)
    source = ReleaseSource(prompt=seen.prompt, version=seen.prompt_version)
    row, _ = release_service.create(
        session,
        ReleaseCreate(
            label_set=seen.label_set,
            name=f"run-{run.id}",
            sources=[source],
            languages=[language_of(run)],
            message=f"What run {run.id} gave",
        ),
    )
    return row.id


def _take_back(session: Session, now: datetime) -> None:
    """Put jobs whose lease has ended back into the queue, or end them."""
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
                f"Worker {worker!r} fell silent in the last of {row.max_attempts} attempts.",
            )
        else:
            _queue_again(session, row, f"the lease of worker {worker!r} ended")
        session.add(row)
    session.flush()


def _queue_again(session: Session, row: JobRow, reason: str) -> None:
    row.state, row.worker, row.lease_expires_at = JobState.QUEUED, None, None
    session.add(row)
    _tell_state(session, row, reason=reason)


def _has_expired(row: JobRow, now: datetime) -> bool:
    return row.lease_expires_at is not None and row.lease_expires_at < now


def held(session: Session, job_id: int, fence: str) -> JobRow:
    """The job, if it is still held by the lease with `fence`; else LeaseLost."""
    row = get(session, job_id)
    if row.state.is_final:
        raise LeaseLost(f"Job {job_id} has ended ({row.state.value}): stop working on it.")
    if row.state not in HELD or not _is_lease_of(row, fence):
        raise LeaseLost(f"Another lease holds job {job_id} now, or none: stop working on it.")
    return row


def _is_lease_of(row: JobRow, fence: str) -> bool:
    return row.fence is not None and compare_digest(row.fence.encode(), fence.encode())


def _start(session: Session, row: JobRow) -> None:
    if row.state is JobState.LEASED:
        row.state = JobState.RUNNING
        row.started_at = row.started_at or utcnow()
        session.add(row)
        _tell_state(session, row, worker=row.worker)


def heartbeat(session: Session, job_id: int, fence: str, lease_seconds: float) -> JobRow:
    """Renew a lease. Raises LeaseLost."""
    row = held(session, job_id, fence)
    row.lease_expires_at = utcnow() + timedelta(seconds=lease_seconds)
    session.add(row)
    _start(session, row)
    session.flush()
    return row


def add_events(session: Session, job_id: int, fence: str, events: Sequence[EventIn]) -> int:
    """Append a worker's events in order, those left out that are there; how many were new.

    A worker that goes on in the folder of one that was killed brings what that one had not sent.
    Raises LeaseLost.
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
        made_under = event.fence or fence
        if (made_under, event.worker_seq) not in stored:
            stored.add((made_under, event.worker_seq))
            new.append(
                {
                    "job_id": job_id,
                    "seq": seq + len(new) + 1,
                    "fence": made_under,
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
    """End a job as its worker says. Saying it again is no error. Raises LeaseLost.

    One that ran out of memory is told the next smaller batch size, and if its owner allowed it,
    and it has an attempt left, queued with that.
    """
    row = get(session, job_id)
    if row.state is state and _is_lease_of(row, fence):
        return row  # the answer to the first time was lost
    row = held(session, job_id, fence)
    error = error and escaped(error, MAX_ERROR)
    row.started_at = row.started_at or utcnow()
    if state is JobState.FAILED and out_of_memory:
        batch_size = TrainConfig.model_validate(row.config).batch_size
        smaller = max(SMALLEST_BATCH, batch_size // 2)
        if smaller == batch_size:
            error = f"out of memory even with a batch_size of {batch_size}"
        elif not row.shrink_batch or row.attempts >= row.max_attempts:
            error = f"out of memory with a batch_size of {batch_size}: try {smaller}"
        else:
            row.config = {**row.config, "batch_size": smaller}
            reason = f"out of memory with a batch_size of {batch_size}: trying {smaller}"
            _queue_again(session, row, reason)
            return row
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
    # Rows of older versions may hold any JSON.
    data: Any = row.data
    fits = isinstance(data, dict)
    return Event(
        seq=row.seq, kind=row.kind, data=data if fits else {"message": str(data)}, at=row.at
    )
