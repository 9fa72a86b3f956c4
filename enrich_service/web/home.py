"""The home page: running, recently finished and failed runs and jobs; first steps."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from contract import JobState
from enrich_service.core.rest.dependencies import ReadSession
from enrich_service.generations.models import RunState
from enrich_service.jobs import service as job_service
from enrich_service.labels import service as label_service
from enrich_service.releases import service as release_service
from enrich_service.runs import service as run_service
from enrich_service.runs.routes import RunsDep
from enrich_service.web.jobs.pages import progress_of
from enrich_service.web.page import page

router = APIRouter()
RECENT = 30  # number of newest runs and jobs that are considered
MAX_ROWS = 8  # per list
_ACTIVE = (RunState.QUEUED, RunState.RUNNING)


@router.get("/", response_class=HTMLResponse)
def show_home(request: Request, session: ReadSession, runs: RunsDep) -> HTMLResponse:
    """The home page."""
    recent = [
        run_service.run_view(session, run, runs.active(run.id or 0))
        for run in run_service.list_runs(
            session, label_set=None, state=None, limit=RECENT, offset=0
        )
    ]
    jobs = job_service.listing(session, limit=RECENT)
    return page(
        request,
        "home.html",
        label_sets=label_service.listing(session, limit=MAX_ROWS),
        releases=release_service.listing(session, limit=MAX_ROWS),
        active_runs=[run for run in recent if run.state in _ACTIVE],
        active_jobs=[(job, progress_of(session, job)) for job in jobs if not job.state.is_final],
        runs_to_review=[
            run
            for run in recent
            if run.state in (RunState.PAUSED, RunState.FAILED)
            or (run.state is RunState.SUCCEEDED and run.rejected)
        ][:MAX_ROWS],
        failed_jobs=[job for job in jobs if job.state is JobState.FAILED][:MAX_ROWS],
        ended_runs=[run for run in recent if run.state is RunState.SUCCEEDED][:MAX_ROWS],
        ended_jobs=[job for job in jobs if job.state is JobState.SUCCEEDED][:MAX_ROWS],
        described=any(run.accepted or run.cached for run in recent),
    )
