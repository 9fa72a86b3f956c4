"""Workers: when they were last seen, and the resources that they report."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from pydantic import ValidationError
from sqlmodel import Session, col, delete, select

from contract import WorkerOffers
from enrich_service.core.storage.database import utcnow
from enrich_service.workers.models import WorkerRow
from enrich_service.workers.schemas import Registration, WorkerView

GONE_AFTER_S: Final = 60.0  # idle workers request a job every few seconds
TOUCH_INTERVAL_S: Final = 5.0  # between updates of `last_seen`
RETENTION: Final = timedelta(days=7)  # since a worker was last seen
MAX_WORKERS: Final = 1000


def register(session: Session, body: Registration) -> WorkerRow:
    """Store the resources of a worker, and delete workers that were not seen for a week."""
    row = _find(session, body.worker) or WorkerRow(name=body.worker)
    row.gpu, row.memory_gb, row.last_seen = body.gpu, body.memory_gb, utcnow()
    row.offers = body.offers.model_dump(mode="json")
    session.add(row)
    session.flush()
    _delete_old(session)
    return row


def touch(
    session: Session, name: str, *, gpu: bool | None = None, memory_gb: float | None = None
) -> None:
    """Record that a worker was seen, and its resources if given."""
    row = _find(session, name)
    if row is None:
        row = WorkerRow(name=name)
        session.add(row)
        session.flush()
        _delete_old(session)
    resources = (row.gpu if gpu is None else gpu, row.memory_gb if memory_gb is None else memory_gb)
    now = utcnow()
    is_recent = timedelta(0) <= now - row.last_seen < timedelta(seconds=TOUCH_INTERVAL_S)
    if is_recent and resources == (row.gpu, row.memory_gb):
        return
    row.gpu, row.memory_gb = resources
    row.last_seen = now
    session.add(row)
    session.flush()


def _find(session: Session, name: str) -> WorkerRow | None:
    return session.exec(select(WorkerRow).where(WorkerRow.name == name)).one_or_none()


def _delete_old(session: Session) -> None:
    """Delete workers that were not seen for a week, and the oldest ones beyond MAX_WORKERS."""
    newest = select(WorkerRow.id).order_by(col(WorkerRow.last_seen).desc()).limit(MAX_WORKERS)
    session.exec(
        delete(WorkerRow).where(
            (col(WorkerRow.last_seen) < utcnow() - RETENTION) | col(WorkerRow.id).not_in(newest)
        )
    )


def listing(
    session: Session,
    lease_seconds: float,
    *,
    jobs: Mapping[str, int],
    running_only: bool = False,
) -> list[WorkerView]:
    """Workers: running ones first, then by name. `jobs`: worker name → id of the job it holds."""
    oldest = utcnow() - timedelta(seconds=max(GONE_AFTER_S, lease_seconds))
    query = select(WorkerRow).order_by(col(WorkerRow.name))
    if running_only:
        query = query.where(col(WorkerRow.last_seen) >= oldest)
    views = [
        WorkerView(
            name=row.name,
            running=row.last_seen >= oldest,
            job=jobs.get(row.name),
            gpu=row.gpu,
            memory_gb=row.memory_gb,
            offers=_offers(row),
            first_seen=row.first_seen,
            last_seen=row.last_seen,
        )
        for row in session.exec(query)
    ]
    return sorted(views, key=lambda view: not view.running)


def _offers(row: WorkerRow) -> WorkerOffers | None:
    """The stored offers; None without any, or if an older version stored another format."""
    if row.offers is None:
        return None
    try:
        return WorkerOffers.model_validate(row.offers)
    except ValidationError:
        return None
