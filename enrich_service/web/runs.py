"""Pages of runs: list, estimate, progress, failures."""

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlmodel import Session

from enrich_service.core.errors import UserError
from enrich_service.core.rest.dependencies import (
    MAX_ID,
    EngineDep,
    Id,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from enrich_service.core.rest.server_sent_events import END, Update, poll
from enrich_service.core.storage.database import utcnow
from enrich_service.labels import service as label_service
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.schemas import PromptView
from enrich_service.prompts.templates import variables_of
from enrich_service.runs import estimate as estimates
from enrich_service.runs import service
from enrich_service.runs.failures import failures
from enrich_service.runs.plan import choose
from enrich_service.runs.routes import (
    PROGRESS_INTERVAL_S,
    EnricherDep,
    ExistingRunId,
    RunsDep,
    current_view,
)
from enrich_service.runs.scheduling.scheduler import RunScheduler
from enrich_service.runs.schemas import RunCreate, RunResume, RunView
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.page import csv_file, page, render

router = APIRouter()
PAGE_SIZE = 50
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]
_FORM_FIELDS = ("label_set", "prompt", "version", "alias", "model", "mode", "samples", "images")


@router.get("/runs", response_class=HTMLResponse)
def list_runs(
    request: Request, session: ReadSession, runs: RunsDep, offset: Offset = 0
) -> HTMLResponse:
    """Runs, newest first."""
    rows = service.list_runs(
        session, label_set=None, state=None, limit=PAGE_SIZE + 1, offset=offset
    )
    return page(
        request,
        "runs/list.html",
        runs=[service.run_view(session, run, runs.active(run.id or 0)) for run in rows[:PAGE_SIZE]],
        more=len(rows) > PAGE_SIZE,
        first=offset,
        size=PAGE_SIZE,
    )


@router.get("/runs.csv")
def download_runs(session: ReadSession, runs: RunsDep) -> Response:
    """All runs as CSV."""
    listed = service.list_runs(session, label_set=None, state=None, limit=100_000, offset=0)
    columns = tuple(RunView.model_fields)
    rows = [
        service.run_view(session, run, runs.active(run.id or 0)).model_dump(mode="json")
        for run in listed
    ]
    for row in rows:
        if row["cost_usd"] is not None:
            row["cost_usd"] = round(row["cost_usd"], 3)  # a tenth of a cent
    return csv_file("runs.csv", columns, ([row[name] for name in columns] for row in rows))


@router.get("/runs/new", response_class=HTMLResponse)
def choose_run(
    request: Request, session: ReadSession, settings: SettingsDep, enricher: EnricherDep
) -> HTMLResponse:
    """The form of a new run, with an estimate if its fields are set."""
    given = {name: value for name, value in request.query_params.items() if value.strip()}
    return _form(request, session, settings, enricher, given)


def _form(
    request: Request,
    session: Session,
    settings: SettingsDep,
    enricher: EnricherDep,
    given: dict[str, str],
    error: UserError | None = None,
) -> HTMLResponse:
    estimate = None
    if error is None and "label_set" in given and "prompt" in given:
        try:
            body = parse_form(RunCreate, {n: v for n, v in given.items() if n in _FORM_FIELDS})
            plan = choose(session, body, settings, enricher.source)
            estimate = estimates.estimate(
                session, body, plan, settings.prices, roots=settings.image_roots
            )
        except UserError as rejection:
            error = rejection
    return page(
        request,
        "runs/new.html",
        status=error.status if error else 200,
        error=error,
        given=given,
        estimate=estimate,
        chosen={name: given[name] for name in _FORM_FIELDS if name in given},
        label_sets=label_service.listing(session, limit=None),
        prompts=_label_prompts(session),
        image_roots=settings.image_roots,
        default_model=settings.llm_model,
    )


def _label_prompts(session: Session) -> list[PromptView]:
    """Prompts for runs over labels. Runs of prompts that use `texts` are started from a release."""
    newest = prompt_service.newest_versions(session)
    return [
        prompt
        for prompt in prompt_service.listing(session, limit=None)
        if "texts" not in variables_of(newest[prompt.name])
    ]


@router.post("/runs")
def create_run(
    request: Request,
    form: SentForm,
    session: WriteSession,
    settings: SettingsDep,
    enricher: EnricherDep,
    runs: RunsDep,
) -> Response:
    """Queue a run."""
    try:
        with session.begin_nested():
            body = parse_form(RunCreate, form)
            plan = choose(session, body, settings, enricher.source)
            run = service.create_run(
                session, body, plan, settings.prices, roots=settings.image_roots
            )
    except UserError as error:
        return _form(request, session, settings, enricher, form, error)
    session.commit()
    runs.wake()
    return redirect(f"/runs/{run.id}", form)


@router.get("/runs/{run_id}", response_class=HTMLResponse)
def show_run(request: Request, run_id: Id, session: ReadSession, runs: RunsDep) -> HTMLResponse:
    """A run with its progress and failures."""
    run = service.run_view(session, service.get_run(session, run_id), runs.active(run_id))
    return page(
        request,
        "runs/show.html",
        failures=failures(session, run_id) if run.rejected or run.failed else (),
        **_progress(run),
    )


def _progress(run: RunView) -> dict[str, Any]:
    """The values of the progress section."""
    answered = run.accepted + run.rejected + run.failed
    remaining = run.total - run.done
    projected = None
    if run.cost_usd is not None and answered:
        projected = run.cost_usd * (1 + remaining / answered)
    end = run.finished_at or (utcnow() if run.state == "running" else None)
    return {
        "run": run,
        "projected": projected,
        "seconds": (end - run.started_at).total_seconds() if end and run.started_at else None,
        "seconds_left": remaining / run.rate
        if run.rate and remaining and run.state == "running"
        else None,
    }


@router.get("/runs/{run_id}/live", response_class=EventSourceResponse)
async def follow_run(
    request: Request,
    run_id: ExistingRunId,
    engine: EngineDep,
    runs: RunsDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the progress section of a run's page after each change; event `end` when it has ended.

    The id of an event is the hash of its content: a client that reconnects with it gets an event
    only if the content has changed.
    """

    def read(known: str | None) -> Update[str | None]:
        run = current_view(engine, runs, run_id)
        digest = hashlib.sha256(run.model_dump_json(exclude={"rate"}).encode()).hexdigest()[:16]
        events = []
        if digest != known:
            html = render(request, "runs/progress.html", **_progress(run))
            events.append(ServerSentEvent(raw_data=html, id=digest))
        final = run.state not in service.UNFINISHED
        if final:
            events.append(END)
        return Update(digest, events, final=final)

    async for event in poll(request, read, last_event_id, interval_s=PROGRESS_INTERVAL_S):
        yield event


@router.post("/runs/{run_id}/pause")
def pause_run(run_id: Id, form: SentForm, session: WriteSession, runs: RunsDep) -> Response:
    """Pause a run."""
    service.pause_run(session, run_id)
    return _redirect_after_change(run_id, session, runs, form)


@router.post("/runs/{run_id}/resume")
def resume_run(
    run_id: Id, form: SentForm, session: WriteSession, settings: SettingsDep, runs: RunsDep
) -> Response:
    """Resume a run, optionally with another budget."""
    fields = {name: form[name] for name in RunResume.model_fields if name in form}
    body = parse_form(RunResume, fields)
    service.resume_run(session, run_id, settings.prices, **body.model_dump())
    return _redirect_after_change(run_id, session, runs, form)


@router.post("/runs/{run_id}/cancel")
def cancel_run(run_id: Id, form: SentForm, session: WriteSession, runs: RunsDep) -> Response:
    """Cancel a run."""
    service.cancel_run(session, run_id)
    return _redirect_after_change(run_id, session, runs, form)


@router.post("/runs/{run_id}/retry")
def retry_run(run_id: Id, form: SentForm, session: WriteSession, runs: RunsDep) -> Response:
    """Retry the failed labels of a run."""
    service.retry_run(session, run_id)
    return _redirect_after_change(run_id, session, runs, form)


def _redirect_after_change(
    run_id: int, session: Session, runs: RunScheduler, form: Form
) -> RedirectResponse:
    session.commit()
    runs.wake()
    return redirect(f"/runs/{run_id}", form)
