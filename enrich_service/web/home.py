"""The home page: running, recently finished and failed work; first steps."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from contract import JobState
from enrich_service.core.rest.dependencies import ReadSession
from enrich_service.generations.models import RunState
from enrich_service.jobs import service as job_service
from enrich_service.labels import service as label_service
from enrich_service.releases import service as release_service
from enrich_service.runs import service as enrichment_service
from enrich_service.runs.routes import RunsDep
from enrich_service.web.jobs.pages import progress_of
from enrich_service.web.page import page

router = APIRouter()
LATELY = 30  # newest runs and jobs that are considered
SHOWN = 8
_MOVING = (RunState.QUEUED, RunState.RUNNING)


@router.get("/", response_class=HTMLResponse)
def show_home(request: Request, session: ReadSession, runs: RunsDep) -> HTMLResponse:
    """The home page."""
    recent = [
        enrichment_service.run_view(session, run, runs.active(run.id or 0))
        for run in enrichment_service.list_runs(
            session, label_set=None, state=None, limit=LATELY, offset=0
        )
    ]
    jobs = job_service.listing(session, limit=LATELY)
    return page(
        request,
        "home.html",
        label_sets=label_service.listing(session, limit=SHOWN),
        releases=release_service.listing(session, limit=SHOWN),
        moving_runs=[run for run in recent if run.state in _MOVING],
        moving_jobs=[(job, progress_of(session, job)) for job in jobs if not job.state.is_final],
        waiting_runs=[
            run
            for run in recent
            if run.state in (RunState.PAUSED, RunState.FAILED)
            or (run.state is RunState.SUCCEEDED and run.rejected)
        ][:SHOWN],
        failed_jobs=[job for job in jobs if job.state is JobState.FAILED][:SHOWN],
        ended_runs=[run for run in recent if run.state is RunState.SUCCEEDED][:SHOWN],
        ended_jobs=[job for job in jobs if job.state is JobState.SUCCEEDED][:SHOWN],
        described=any(run.accepted or run.cached for run in recent),
    )
