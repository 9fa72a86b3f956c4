"""Workers over REST."""

from fastapi import APIRouter

from enrich_service.core.rest.dependencies import ReadSession, SettingsDep, WorkSession
from enrich_service.core.rest.problems import problems
from enrich_service.jobs import service
from enrich_service.workers import service as workers
from enrich_service.workers.schemas import Registration, WorkerView

router = APIRouter(prefix="/v1/workers", tags=["jobs"])


@router.get("", summary="List workers", responses=problems())
def list_workers(session: ReadSession, settings: SettingsDep) -> list[WorkerView]:
    """List the workers of the last seven days with their devices, data and models.

    Running workers come first.
    """
    jobs = service.held_jobs(session)
    return workers.listing(session, settings.lease_seconds, jobs=jobs)


@router.post("", status_code=204, summary="Register a worker", responses=problems())
def register_worker(body: Registration, session: WorkSession) -> None:
    """Store the device, memory, data sets and models of a worker. Workers repeat this regularly.

    Long texts and lists are truncated, and invalid parts of `offers` are left out.
    """
    workers.register(session, body)
