"""Pages of jobs: queue, progress, results."""

from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlmodel import Session

from contract import (
    CLASSIFIER_ARTIFACT,
    EventKind,
    Job,
    JobState,
    Progress,
)
from enrich_service.core.errors import InvalidInput, UserError
from enrich_service.core.rest.dependencies import (
    MAX_ID,
    EngineDep,
    Id,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from enrich_service.core.rest.server_sent_events import END, Update, poll
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading
from enrich_service.core.text import whole_number
from enrich_service.jobs import artifacts, service
from enrich_service.students import service as students
from enrich_service.web.drawings.charts import line_chart
from enrich_service.web.forms import (
    Form,
    SentForm,
    redirect,
)
from enrich_service.web.jobs.comparison import MAX_COMPARED
from enrich_service.web.jobs.results import (
    display_text,
    epochs_of,
    flat,
    flat_config,
    release_of,
    report_of,
)
from enrich_service.web.page import csv_file, page, render

router = APIRouter()
PAGE_SIZE = 50
LOG_LINES = 30
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]


@router.get("/jobs", response_class=HTMLResponse)
def list_jobs(
    request: Request, session: ReadSession, state: str = "", offset: Offset = 0
) -> HTMLResponse:
    """Jobs, newest first."""
    if state not in ("", *JobState):
        raise InvalidInput(f"state: must be one of {', '.join(JobState)}")
    jobs = service.listing(
        session, state=JobState(state) if state else None, limit=PAGE_SIZE + 1, offset=offset
    )
    return page(
        request,
        "jobs/list.html",
        jobs=jobs[:PAGE_SIZE],
        states=list(JobState),
        state=state,
        more=len(jobs) > PAGE_SIZE,
        first=offset,
        size=PAGE_SIZE,
        compared=MAX_COMPARED,
    )


@router.get("/jobs/{job_id}", response_class=HTMLResponse)
def show_job(
    request: Request, job_id: Id, session: ReadSession, settings: SettingsDep
) -> HTMLResponse:
    """A job: progress, results and settings."""
    return job_page(request, session, settings, job_id)


def job_page(
    request: Request,
    session: Session,
    settings: Settings,
    job_id: int,
    *,
    error: UserError | None = None,
    given: Form | None = None,
) -> HTMLResponse:
    """The page of a job; `error`: why the form for its student, sent with `given`, was rejected."""
    job = service.view(session, service.get(session, job_id))
    job_artifacts = artifacts.listing(session, job_id)
    report, report_error = report_of(session, settings, job)
    release = release_of(session, job)
    return page(
        request,
        "jobs/show.html",
        status=error.status if error else 200,
        error=error,
        given=given or {},
        versions=students.versions(session, job_id=job_id),
        students=[student.name for student in students.listing(session, limit=None)],
        artifacts=[artifacts.view(artifact) for artifact in job_artifacts],
        can_register=job.state is JobState.SUCCEEDED
        and any(artifact.name == CLASSIFIER_ARTIFACT for artifact in job_artifacts),
        has_report_page=any(artifact.name == "report.html" for artifact in job_artifacts),
        report=report,
        report_error=report_error,
        release=release,
        config={name: display_text(value) for name, value in flat_config(job).items()},
        **_progress(session, job),
    )


def progress_of(session: Session, job: Job) -> Progress | None:
    """The progress of the current phase of a job; None if it has ended or sent no progress."""
    if job.state.is_final:
        return None
    for event in service.last_events(session, job.id, EventKind.PROGRESS):
        with suppress(ValidationError):
            return Progress.model_validate(event.data)
    return None


def _progress(session: Session, job: Job) -> dict[str, Any]:
    """The values of the progress section."""
    epochs = epochs_of(session, job.id)
    log = service.last_events(session, job.id, EventKind.LOG, EventKind.STATE, limit=LOG_LINES)
    names = dict.fromkeys(name for epoch in epochs for name in epoch.losses)
    losses = {
        name: [(epoch.epoch, epoch.losses[name]) for epoch in epochs if name in epoch.losses]
        for name in names
    }
    seen_accuracy = {"seen classes": [(epoch.epoch, epoch.seen_top1) for epoch in epochs]}
    return {
        "job": job,
        "step": progress_of(session, job),
        "log": log,
        "epochs": epochs,
        "charts": [
            chart
            for chart in (
                line_chart("Mean losses per epoch", losses, x_label="epoch"),
                line_chart("Accuracy on seen classes (%)", seen_accuracy, x_label="epoch"),
            )
            if chart is not None
        ],
    }


def _existing(job_id: Id, session: ReadSession) -> int:
    service.get(session, job_id)
    return job_id


@router.get("/jobs/{job_id}/live", response_class=EventSourceResponse)
async def follow_job(
    request: Request,
    job_id: Annotated[int, Depends(_existing)],
    engine: EngineDep,
    settings: SettingsDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the progress section of a job's page after new events; event `end` when it has ended.

    The id of an event is the `seq` of the job's last event: a client that reconnects with it gets
    an update only if there are newer events.
    """
    seq = whole_number(last_event_id or "") or 0
    read = partial(_read_update, request, engine, job_id)
    async for event in poll(request, read, seq, interval_s=settings.event_poll_seconds):
        yield event


def _read_update(request: Request, engine: Engine, job_id: int, known: int) -> Update[int]:
    with reading(engine) as session:
        job = service.view(session, service.get(session, job_id))
        last = service.last_events(session, job_id, *EventKind)
        seq = last[0].seq if last else 0
        events = []
        if seq != known:
            html = render(request, "jobs/progress.html", **_progress(session, job))
            events.append(ServerSentEvent(raw_data=html, id=str(seq)))
    if job.state.is_final:
        events.append(END)
    return Update(seq, events, final=job.state.is_final)


@router.get("/jobs/{job_id}/epochs.csv")
def download_epochs(job_id: Id, session: ReadSession) -> Response:
    """The epochs as CSV."""
    service.get(session, job_id)
    epochs = [flat(epoch.model_dump()) for epoch in epochs_of(session, job_id)]
    columns = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    rows = ([epoch.get(name, "") for name in columns] for epoch in epochs)
    return csv_file(f"job-{job_id}-epochs.csv", columns, rows)


@router.post("/jobs/{job_id}/retry")
def retry_job(job_id: Id, form: SentForm, session: WriteSession) -> Response:
    """Queue a failed or cancelled job again."""
    service.retry(session, job_id)
    return redirect(f"/jobs/{job_id}", form)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: Id, form: SentForm, session: WriteSession) -> Response:
    """Cancel a job."""
    service.cancel(session, job_id)
    return redirect(f"/jobs/{job_id}", form)
