"""Pages of jobs: queue, form, progress, results, comparison."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ValidationError
from pydantic import Field as PydanticField
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import Engine
from sqlmodel import Session

from contract import (
    CLASSIFIER_ARTIFACT,
    Epoch,
    EventKind,
    Job,
    JobCreate,
    JobState,
    Progress,
    Report,
    TrainConfig,
)
from enrich_service.core.errors import InvalidInput, NotFound, UserError
from enrich_service.core.rest import audit
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
from enrich_service.core.text import shortened, whole_number
from enrich_service.jobs import artifacts, reports, service
from enrich_service.releases import service as release_service
from enrich_service.releases.schemas import ReleaseView
from enrich_service.students import service as students
from enrich_service.web import workers
from enrich_service.web.drawings.charts import Chart, bar_chart, line_chart
from enrich_service.web.forms import (
    Form,
    SentForm,
    field_values,
    parse_form,
    redirect,
    without_none,
)
from enrich_service.web.page import csv_file, page, render
from enrich_service.web.workers import Suggestion
from enrich_service.workers import matching
from enrich_service.workers.schemas import WorkerView

router = APIRouter()
SIZE = 50
LOG_LINES = 30
EPOCHS = 10_000
COMPARED = 6
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]
Jobs = Annotated[
    list[Annotated[int, PydanticField(ge=1, le=MAX_ID)]], Query(alias="job", default_factory=list)
]

# ----------------------------------------------------------------------------- the queue, and new


@router.get("/jobs", response_class=HTMLResponse)
def list_jobs(
    request: Request, session: ReadSession, state: str = "", offset: Offset = 0
) -> HTMLResponse:
    """Jobs, newest first."""
    if state not in ("", *JobState):
        raise InvalidInput(f"state: must be one of {', '.join(JobState)}")
    wanted = JobState(state) if state else None
    found = service.listing(session, state=wanted, limit=SIZE + 1, offset=offset)
    return page(
        request,
        "jobs/list.html",
        jobs=found[:SIZE],
        states=list(JobState),
        state=state,
        more=len(found) > SIZE,
        first=offset,
        size=SIZE,
        compared=COMPARED,
    )


@dataclass(frozen=True)
class Field:
    """One setting of a job, as a form shows it."""

    name: str
    kind: Literal["text", "whole", "number", "tick", "choice"]
    value: object
    about: str
    choices: tuple[str, ...] = ()
    required: bool = False
    suggestions: tuple[Suggestion, ...] = ()


_FIRST = ("data", "teacher", "student", "text_strategy", "epochs", "image_size", "seed")


@router.get("/jobs/new", response_class=HTMLResponse)
def choose_job(
    request: Request,
    session: ReadSession,
    settings: SettingsDep,
    release_id: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    like: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    recipe: str | None = None,
) -> HTMLResponse:
    """The form of a new job; `like`: with the settings of another; `recipe`: of a worker."""
    given: dict[str, Any] = {}
    if like is not None:
        other = service.view(session, service.get(session, like))
        given = _config(other)
        release_id = release_id or other.release_id
    running = workers.running(session, settings)
    if recipe is not None:
        known = workers.recipes(running)
        if recipe not in known:
            raise NotFound(f"No running worker has a recipe {shortened(recipe)}.")
        given |= known[recipe]
    given |= {"release_id": str(release_id or "")}
    return _form(request, session, running, given)


def _form(
    request: Request,
    session: Session,
    running: Sequence[WorkerView],
    given: Mapping[str, Any],
    *,
    error: UserError | None = None,
    warnings: Sequence[str] = (),
) -> HTMLResponse:
    suggestions = workers.suggestions(running)
    fields = [
        replace(field, suggestions=tuple(suggestions.get(field.name, ())))
        for field in _fields(TrainConfig, given)
    ]
    return page(
        request,
        "jobs/new.html",
        status=error.status if error else 200,
        error=error,
        warnings=warnings,
        has_workers=bool(running),
        recipes=list(workers.recipes(running)),
        given=given,
        releases=release_service.listing(session, limit=1000),
        first=[field for name in _FIRST for field in fields if field.name == name],
        more=[field for field in fields if field.name not in _FIRST],
    )


def _fields(model: type[BaseModel], given: Mapping[str, Any], prefix: str = "") -> list[Field]:
    """The fields of a config; fields of a nested config are prefixed with its name."""
    found = []
    for name, info in model.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += _fields(nested, given, f"{prefix}{name}.")
        else:
            found.append(_field(f"{prefix}{name}", info, given))
    return found


def _field(name: str, info: FieldInfo, given: Mapping[str, Any]) -> Field:
    kind: Literal["text", "whole", "number", "tick", "choice"] = "text"
    annotation = without_none(info.annotation)
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        kind, choices = "choice", tuple(str(choice) for choice in get_args(annotation))
    elif annotation is bool:
        kind = "tick"
    elif annotation is int:
        kind = "whole"
    elif annotation is float:
        kind = "number"
    # A default that depends on other fields is left to the schema: the field stays empty.
    has_default = info.default not in (None, PydanticUndefined)
    default = info.default if has_default else ""
    value = given.get(name, default)
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    value = "" if value is None else str(value) if kind == "choice" else value
    return Field(name, kind, value, info.description or "", choices, info.is_required())


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A flattened config: `losses.cls` for the field `cls` of `losses`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _config(job: Job) -> dict[str, Any]:
    return _flat(job.config.model_dump(mode="json"))


@router.post("/jobs")
def create_job(
    request: Request, form: SentForm, session: WriteSession, settings: SettingsDep
) -> Response:
    """Queue a job; where no running worker has what it needs, only if that is confirmed."""
    running = workers.running(session, settings)
    ticks = {f.name: form.is_checked(f.name) for f in _fields(TrainConfig, {}) if f.kind == "tick"}
    given = {**form, **ticks}
    try:
        with session.begin_nested():
            body = parse_form(
                JobCreate,
                {key: form[key] for key in ("release_id", "priority") if key in form}
                | {"config": field_values(TrainConfig, form)},
            )
            lacking = matching.warnings(running, body.config) if running else []
            if lacking and not form.is_checked("anyway"):
                audit.settle(request)  # nothing is stored
                return _form(request, session, running, given, warnings=lacking)
            row = service.create(session, body)
    except UserError as error:
        return _form(request, session, running, given, error=error)
    return redirect(f"/jobs/{row.id}", form)


# ------------------------------------------------------------------------------------------ a job


@router.get("/jobs/compare", response_class=HTMLResponse)
def compare_jobs(
    request: Request, session: ReadSession, settings: SettingsDep, jobs: Jobs
) -> HTMLResponse:
    """Up to 6 jobs in one table and one chart."""
    return page(request, "jobs/compare.html", **_comparison(session, settings, jobs))


@router.get("/jobs/compare.csv")
def download_comparison(session: ReadSession, settings: SettingsDep, jobs: Jobs) -> Response:
    """The comparison as one CSV table."""
    found = _comparison(session, settings, jobs)
    rows = [(row.name, *row.values) for row in (*found["results"], *found["settings"])]
    return csv_file("jobs.csv", ("", *(f"job {job.id}" for job in found["jobs"])), rows)


@dataclass(frozen=True)
class ComparedRow:
    """One row of the comparison."""

    name: str
    values: tuple[object, ...]
    best: frozenset[int] = frozenset()  # positions of the highest value

    @property
    def differs(self) -> bool:
        """Whether the values of the jobs differ."""
        return len({repr(value) for value in self.values}) > 1


def _comparison(session: Session, settings: Settings, ids: Sequence[int]) -> dict[str, Any]:
    chosen = list(dict.fromkeys(ids))
    if not 2 <= len(chosen) <= COMPARED:
        raise InvalidInput(f"Choose 2 to {COMPARED} jobs to compare.")
    jobs = [service.view(session, service.get(session, job_id)) for job_id in chosen]
    found = [_report(session, settings, job)[0] for job in jobs]
    releases = [_release(session, job) for job in jobs]
    configs = [_config(job) for job in jobs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = [
        ComparedRow(
            "release",
            tuple(
                f"{release.name} ({release.hash[:10]})" if release else _shown(None)
                for release in releases
            ),
        ),
        *(
            ComparedRow(name, tuple(_shown(config.get(name)) for config in configs))
            for name in names
        ),
    ]
    curves = {
        f"Job {job.id}": [(epoch.epoch, epoch.seen_top1) for epoch in _epochs(session, job.id)]
        for job in jobs
    }
    return {
        "jobs": jobs,
        "results": _results(found),
        "settings": sorted(rows, key=lambda row: not row.differs),
        "curves": line_chart("Accuracy on seen classes (%)", curves, x_label="epoch"),
        "bars": [
            (split, chart)
            for split in ("unseen", "seen")
            if (chart := _bars(split, jobs, found)) is not None
        ],
    }


def _release(session: Session, job: Job) -> ReleaseView | None:
    """The release that a job trains on; None while the job waits for its run."""
    if job.release_id is None:
        return None
    return release_service.view(session, release_service.get(session, job.release_id))


def _shown(value: object) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _results(found: Sequence[Report | None]) -> list[ComparedRow]:
    """Accuracies by model, text and split, as far as any job has them."""
    tables = [
        {(row.model, row.text, row.split): row.top1 for row in report.accuracies} if report else {}
        for report in found
    ]
    rows = []
    for key in sorted({key for table in tables for key in table}, key=_order):
        values = [table.get(key) for table in tables]
        known = [value for value in values if value is not None]
        highest = max(known) if len(set(known)) > 1 else None
        best = frozenset(place for place, value in enumerate(values) if value and value == highest)
        model, text, split = key
        shown = tuple("–" if value is None else f"{value:.1f}" for value in values)
        rows.append(ComparedRow(f"{model}, {text}, {split}", shown, best))
    return rows


def _order(key: tuple[str, str, str]) -> tuple[bool, bool, bool, bool, str]:
    model, text, split = key
    return model == "teacher", split == "seen", text == "shuffled", text == "name", text


def _bars(split: str, jobs: Sequence[Job], found: Sequence[Report | None]) -> Chart | None:
    groups = []
    for job, report in zip(jobs, found, strict=True):
        rows = report.accuracies if report else ()
        values = {
            row.text: row.top1 for row in rows if row.model == "student" and row.split == split
        }
        if values:
            groups.append((f"Job {job.id}", values))
    return bar_chart(f"Student accuracy on {split} classes (%)", groups)


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
    """The page of a job; `error`: why the form of its student, with `given`, was not accepted."""
    job = service.view(session, service.get(session, job_id))
    left = artifacts.listing(session, job_id)
    report, trouble = _report(session, settings, job)
    release = _release(session, job)
    return page(
        request,
        "jobs/show.html",
        status=error.status if error else 200,
        error=error,
        given=given or {},
        versions=students.versions(session, job_id=job_id),
        students=[student.name for student in students.listing(session, limit=None)],
        artifacts=[artifacts.view(artifact) for artifact in left],
        can_register=job.state is JobState.SUCCEEDED
        and any(artifact.name == CLASSIFIER_ARTIFACT for artifact in left),
        has_page=any(artifact.name == "report.html" for artifact in left),
        report=report,
        trouble=trouble,
        release=release,
        config={name: _shown(value) for name, value in _config(job).items()},
        **_progress(session, job),
    )


def _report(session: Session, settings: Settings, job: Job) -> tuple[Report | None, str | None]:
    """The report of a job, or the reason why it cannot be shown; None while there is none."""
    if not any(artifact.name == "report.json" for artifact in artifacts.listing(session, job.id)):
        return None, None
    try:
        return reports.read(session, settings.artifact_dir, job.id), None
    except UserError as error:
        return None, str(error)


def _epochs(session: Session, job_id: int) -> list[Epoch]:
    """The epochs of a job, without duplicates of resumed attempts.

    Events whose data is not an `Epoch` are left out: no stored JSON may break a page.
    """
    epochs: dict[int, Epoch] = {}
    for event in service.last_events(session, job_id, EventKind.EPOCH, limit=EPOCHS):
        with suppress(ValidationError):
            epoch = Epoch.model_validate(event.data)
            epochs[epoch.epoch] = epoch
    return list(epochs.values())


def progress_of(session: Session, job: Job) -> Progress | None:
    """The progress of the current phase of a job; None if it is finished or unknown."""
    if job.state.is_final:
        return None
    for event in service.last_events(session, job.id, EventKind.PROGRESS):
        with suppress(ValidationError):
            return Progress.model_validate(event.data)
    return None


def _progress(session: Session, job: Job) -> dict[str, Any]:
    """The values of the progress section."""
    epochs = _epochs(session, job.id)
    log = service.last_events(session, job.id, EventKind.LOG, EventKind.STATE, limit=LOG_LINES)
    names = dict.fromkeys(name for epoch in epochs for name in epoch.losses)
    losses = {
        name: [(epoch.epoch, epoch.losses[name]) for epoch in epochs if name in epoch.losses]
        for name in names
    }
    seen = {"seen classes": [(epoch.epoch, epoch.seen_top1) for epoch in epochs]}
    return {
        "job": job,
        "step": progress_of(session, job),
        "log": log,
        "epochs": epochs,
        "charts": [
            chart
            for chart in (
                line_chart("Mean losses per epoch", losses, x_label="epoch"),
                line_chart("Accuracy on seen classes (%)", seen, x_label="epoch"),
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
    """The progress section of a job's page after each new event; `end` when the job is final.

    An event's id is the seq of the job's last event: a client that reconnects with it gets only
    what changed since.
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
    epochs = [_flat(epoch.model_dump()) for epoch in _epochs(session, job_id)]
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
