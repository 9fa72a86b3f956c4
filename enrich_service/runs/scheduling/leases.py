"""Leases in the `run` table: which process works on which run.

The owner of a run renews its lease. If it is killed, the lease expires and another process (or the
same one, restarted) continues the run.
"""

import time
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Engine
from sqlmodel import and_, col, exists, or_, select, true, update

from enrich_service.core.storage.database import reading, utcnow, writing
from enrich_service.core.storage.lease_owner import new_lease_owner
from enrich_service.generations.models import Batch, Run, RunState
from enrich_service.runs.active_run import ActiveRun

OPEN_STATES = (RunState.QUEUED, RunState.RUNNING)


class RunLeases:
    """The leases of this process; `only`: id of the only run to lease."""

    def __init__(self, engine: Engine, lease_seconds: float, *, only: int | None = None) -> None:
        self._engine, self._only = engine, only
        self._lease = timedelta(seconds=lease_seconds)
        self._owner = new_lease_owner()
        # Run id → monotonic time until which its batches are not polled.
        self._batches_delayed_until: dict[int, float] = {}

    def delay_batches(self, run_id: int, seconds: float) -> None:
        """Do not poll the batches of a run for so many seconds."""
        self._batches_delayed_until[run_id] = time.monotonic() + seconds

    def correct(self) -> None:
        """Adjust leases after the system clock was changed.

        Afterwards, no lease ends before its owner can renew it, or lasts longer than a new one.
        Owners renew every half second.
        """
        ends, now = col(Run.owner_expires_at), utcnow()
        for wrong, corrected in (
            (ends < now + self._lease / 2, now + self._lease / 2),
            (ends > now + self._lease, now + self._lease),
        ):
            with reading(self._engine) as session:
                ids = session.exec(select(Run.id).where(wrong)).all()
            if ids:  # usually empty; then starting need not wait for the write lock
                with writing(self._engine) as session:
                    session.exec(
                        update(Run)
                        .where(col(Run.id).in_(ids), wrong)
                        .values(owner_expires_at=corrected)
                    )

    def renew(self, ids: list[int]) -> dict[int, RunState]:
        """Renew the leases of runs; returns the states of those that are still held."""
        if not ids:
            return {}
        own_runs = and_(col(Run.id).in_(ids), col(Run.owner) == self._owner)
        with reading(self._engine) as session:
            rows = session.exec(select(Run).where(own_runs)).all()
        renew_before = utcnow() + self._lease / 2
        if any(run.owner_expires_at is None or run.owner_expires_at < renew_before for run in rows):
            with writing(self._engine) as session:
                session.exec(
                    update(Run).where(own_runs).values(owner_expires_at=utcnow() + self._lease)
                )
        return {run.id: run.state for run in rows if run.id is not None}

    def claim(self, held: Collection[int]) -> list[Run]:
        """Claim all open runs and runs with pending batches that no process holds.

        `held`: ids of the runs that this process works on. A run that it holds without working on
        it, because its outcome could not be stored, is claimed again.
        """
        now = utcnow()
        delayed = [
            run_id
            for run_id, until in self._batches_delayed_until.items()
            if until > time.monotonic()
        ]
        has_pending_batches = exists().where(
            col(Batch.run_id) == col(Run.id),
            col(Batch.ended_at).is_(None),
            col(Run.id).not_in(delayed),
        )
        free = and_(
            or_(col(Run.state).in_(OPEN_STATES), has_pending_batches),
            or_(
                col(Run.owner).is_(None),
                (col(Run.owner_expires_at) < now) & col(Run.id).not_in(held),
            ),
            true() if self._only is None else col(Run.id) == self._only,
        )
        with reading(self._engine) as session:
            ids = session.exec(select(Run.id).where(free)).all()
        if not ids:
            return []
        with writing(self._engine) as session:
            session.exec(
                update(Run)
                .where(col(Run.id).in_(ids), free)
                .values(owner=self._owner, owner_expires_at=now + self._lease)
            )
            own_runs = and_(col(Run.id).in_(ids), col(Run.owner) == self._owner)
            session.exec(
                update(Run)
                .where(own_runs, col(Run.state).in_(OPEN_STATES))
                .values(
                    state=RunState.RUNNING,
                    started_at=utcnow(),
                    error=None,
                    cached=0,  # counted again while reading the labels
                    failed=0,
                )
            )
            return list(session.exec(select(Run).where(own_runs)))

    def release(self, active: ActiveRun) -> None:
        """Store the outcome of a run, if it ended, and release its lease."""
        with writing(self._engine) as session:
            run = session.exec(
                select(Run).where(Run.id == active.run.id, Run.owner == self._owner)
            ).one_or_none()
            if run is None:
                return  # another process holds it
            run.owner = run.owner_expires_at = None
            session.add(run)
            if run.state is not RunState.RUNNING or (active.stop.is_set() and not active.reason):
                return  # paused, cancelled, or this process is stopping
            if active.reason:
                run.error = active.reason
                run.state = RunState.PAUSED if active.pause else RunState.FAILED
            elif run.failed:
                run.error = (
                    f"{run.failed} of {run.total} got no answer: retry the run to get the others"
                )
                run.state = RunState.FAILED
            else:
                run.state = RunState.SUCCEEDED
                # A lease that was lost and claimed again counts some cached labels twice.
                run.cached = min(run.cached, run.total - run.accepted - run.rejected)
            run.finished_at = None if run.state is RunState.PAUSED else utcnow()
