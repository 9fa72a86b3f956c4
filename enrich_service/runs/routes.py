"""Descriptions and runs over REST."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Engine

from enrich_service.core.rest.dependencies import (
    EngineDep,
    Id,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from enrich_service.core.rest.problems import problems
from enrich_service.core.rest.server_sent_events import Update, poll
from enrich_service.core.storage.database import reading
from enrich_service.generations.models import RunState
from enrich_service.runs import service
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.describe import describe
from enrich_service.runs.estimate import estimate
from enrich_service.runs.plan import choose
from enrich_service.runs.scheduling.scheduler import RunScheduler
from enrich_service.runs.schemas import (
    Described,
    DescribeRequest,
    RunCreate,
    RunEstimate,
    RunResume,
    RunView,
)

router = APIRouter(prefix="/v1", tags=["enrichment"])
PROGRESS_INTERVAL_S = 0.5  # between reads of a run whose progress is streamed


def _enricher(request: Request) -> Enricher:
    enricher: Enricher = request.app.state.enricher
    return enricher


def _runs(request: Request) -> RunScheduler:
    runs: RunScheduler = request.app.state.runs
    return runs


EnricherDep = Annotated[Enricher, Depends(_enricher)]
RunsDep = Annotated[RunScheduler, Depends(_runs)]


def current_view(engine: Engine, runs: RunScheduler, run_id: int) -> RunView:
    """The stored run with the live state of this process."""
    with reading(engine) as session:
        return service.run_view(session, service.get_run(session, run_id), runs.active(run_id))


def _view_after_change(engine: Engine, runs: RunScheduler, run_id: int) -> RunView:
    """Notify the scheduler of a committed change, and return the run."""
    runs.wake()
    return current_view(engine, runs, run_id)


@router.post("/describe", summary="Describe class names now", responses=problems(404, 409))
async def describe_labels(body: DescribeRequest, enricher: EnricherDep) -> list[Described]:
    """Describe up to 100 class names, in the order of the request; stored answers cost nothing.

    Takes priority over background runs. A label without an answer has the status `failed` and the
    reason.
    """
    return await describe(enricher, body)


@router.post("/runs", status_code=201, summary="Enrich a label set", responses=problems(404))
def create_run(
    body: RunCreate,
    session: WriteSession,
    settings: SettingsDep,
    enricher: EnricherDep,
    runs: RunsDep,
) -> RunView:
    """Queue a run over a whole label set. It continues after restarts; stored answers are kept."""
    plan = choose(session, body, settings, enricher.source)
    run = service.create_run(session, body, plan, settings.prices, roots=settings.image_roots)
    view = service.run_view(session, run)
    session.commit()
    runs.wake()
    return view


@router.post("/runs/estimate", summary="Estimate a run", responses=problems(404))
def estimate_run(
    body: RunCreate, session: ReadSession, settings: SettingsDep, enricher: EnricherDep
) -> RunEstimate:
    """Estimate the calls, tokens and dollars of a run, without sending any request."""
    plan = choose(session, body, settings, enricher.source)
    return estimate(session, body, plan, settings.prices, roots=settings.image_roots)


@router.get("/runs", summary="List runs", responses=problems(404))
def list_runs(
    session: ReadSession,
    runs: RunsDep,
    label_set: Annotated[str | None, Query(description="Filter by label set")] = None,
    state: Annotated[RunState | None, Query(description="Filter by state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[RunView]:
    """List runs, newest first."""
    rows = service.list_runs(session, label_set=label_set, state=state, limit=limit, offset=offset)
    return [service.run_view(session, run, runs.active(run.id or 0)) for run in rows]


@router.get("/runs/{run_id:int}", summary="Show a run", responses=problems(404))
def show_run(run_id: Id, session: ReadSession, runs: RunsDep) -> RunView:
    """Show a run with its state, counts and cost so far."""
    return service.run_view(session, service.get_run(session, run_id), runs.active(run_id))


def _existing_run(run_id: Id, session: ReadSession) -> int:
    service.get_run(session, run_id)
    return run_id


# Looks up the run before the stream begins; afterwards, a missing run could not become a 404.
ExistingRunId = Annotated[int, Depends(_existing_run)]


@router.get(
    "/runs/{run_id}/events",
    summary="Follow a run",
    response_class=EventSourceResponse,
    responses=problems(404),
)
async def follow_run(
    request: Request,
    run_id: ExistingRunId,
    engine: EngineDep,
    runs: RunsDep,
) -> AsyncIterator[ServerSentEvent]:
    """Stream a run's progress as server-sent events; each event `progress` contains the whole run.

    The stream ends with the run; it stays open for a paused run.
    """

    def read(last: RunView | None) -> Update[RunView | None]:
        view = current_view(engine, runs, run_id)
        events = [] if view == last else [ServerSentEvent(event="progress", data=view)]
        return Update(view, events, final=view.state not in service.UNFINISHED)

    async for event in poll(request, read, None, interval_s=PROGRESS_INTERVAL_S):
        yield event


@router.post("/runs/{run_id}/pause", summary="Pause a run", responses=problems(404, 409))
def pause_run(run_id: Id, session: WriteSession, engine: EngineDep, runs: RunsDep) -> RunView:
    """Pause a run. Answers of calls in flight are stored."""
    service.pause_run(session, run_id)
    session.commit()
    return _view_after_change(engine, runs, run_id)


@router.post("/runs/{run_id}/resume", summary="Resume a run", responses=problems(404, 409))
def resume_run(
    run_id: Id,
    session: WriteSession,
    engine: EngineDep,
    settings: SettingsDep,
    runs: RunsDep,
    body: RunResume | None = None,
) -> RunView:
    """Resume a paused run, optionally with another budget."""
    service.resume_run(session, run_id, settings.prices, **(body or RunResume()).model_dump())
    session.commit()
    return _view_after_change(engine, runs, run_id)


@router.post("/runs/{run_id}/cancel", summary="Cancel a run", responses=problems(404, 409))
def cancel_run(run_id: Id, session: WriteSession, engine: EngineDep, runs: RunsDep) -> RunView:
    """Cancel a run. Stored answers are kept, and a retry continues the run."""
    service.cancel_run(session, run_id)
    session.commit()
    return _view_after_change(engine, runs, run_id)


@router.post("/runs/{run_id}/retry", summary="Retry a run", responses=problems(404, 409))
def retry_run(run_id: Id, session: WriteSession, engine: EngineDep, runs: RunsDep) -> RunView:
    """Request the missing answers of a failed or cancelled run; stored answers cost nothing."""
    service.retry_run(session, run_id)
    session.commit()
    return _view_after_change(engine, runs, run_id)
