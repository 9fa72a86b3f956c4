"""Which queued jobs a worker leaves to others, by what the running workers say they have.

A job waits for a worker only while that one is running, so that no job waits forever: without a
worker that can do it, any worker whose resources suffice takes it, and fails with the reason.
"""

from typing import Final

from sqlmodel import Session, col
from sqlmodel.sql.expression import SelectOfScalar

from contract import Needs, TrainConfig
from enrich_service.jobs.models import JobRow
from enrich_service.workers import service as workers
from enrich_service.workers.matching import can_do

MAX_LEFT: Final = 200


def left_to_others(
    session: Session, queue: SelectOfScalar[JobRow], worker: str, lease_seconds: float
) -> list[int]:
    """Ids of the jobs at the head of `queue` that `worker` cannot do and a running worker can.

    What follows the first job that is not left to others, or MAX_LEFT jobs that are, is not looked
    at.
    """
    columns = (JobRow.id, JobRow.config, JobRow.needs_gpu, JobRow.needs_memory_gb)
    waiting = session.execute(queue.with_only_columns(*map(col, columns)).limit(MAX_LEFT)).all()
    if not waiting:
        return []
    running = workers.listing(session, lease_seconds, jobs={}, running_only=True)
    own = next((view for view in running if view.name == worker), None)
    others = [view for view in running if view.name != worker]
    left: list[int] = []
    if own is None or own.offers is None:
        return left
    for job_id, values, gpu, memory_gb in waiting:
        config, needs = TrainConfig.model_validate(values), Needs(gpu=gpu, memory_gb=memory_gb)
        if can_do(own, config, needs) or not any(can_do(view, config, needs) for view in others):
            break
        left.append(job_id)
    return left
