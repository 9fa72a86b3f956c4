"""Jobs over REST, for users and for workers."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Engine

from contract import Event, Job, JobCreate, JobState, Lease, QueuedJob, Report
from enrich_service.core.errors import InvalidInput, NotFound
from enrich_service.core.rest import audit
from enrich_service.core.rest.dependencies import (
    MAX_ID,
    ClockDep,
    EngineDep,
    Id,
    ReadSession,
    SettingsDep,
    WorkSession,
    WriteSession,
)
from enrich_service.core.rest.problems import problems
from enrich_service.core.rest.server_sent_events import Update, poll
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, writing
from enrich_service.core.text import whole_number
from enrich_service.jobs import artifacts, reports, service, uploads
from enrich_service.jobs.models import JobArtifact
from enrich_service.jobs.schemas import (
    EVENT_EXAMPLE,
    JOB_CREATE_EXAMPLE,
    JOB_EXAMPLE,
    LEASE_EXAMPLE,
    REPORT_EXAMPLE,
    ArtifactView,
    Claim,
    EventsIn,
    EventsStored,
    Fence,
    Finish,
    Heartbeat,
    Renewed,
    Upload,
)
from enrich_service.labels.schemas import Confusable
from enrich_service.workers import matching
from enrich_service.workers import service as workers

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

# A report is untrusted content from a worker: it may only render.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; img-src data:; font-src data:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ),
    "X-Content-Type-Options": "nosniff",
}


def _json_example(status: int, example: object) -> dict[int | str, dict[str, object]]:
    return {status: {"content": {"application/json": {"example": example}}}}


_JOB = _json_example(200, JOB_EXAMPLE)


@router.post(
    "",
    status_code=201,
    summary="Queue a job",
    responses=problems(404, 409)
    | _json_example(201, JOB_EXAMPLE | {"state": "queued", "warnings": [matching.NO_WORKER]}),
)
def create_job(
    body: Annotated[JobCreate, Body(examples=[JOB_CREATE_EXAMPLE])],
    session: WriteSession,
    settings: SettingsDep,
) -> QueuedJob:
    """Queue the training of a student on a release, or on the texts of a run once it succeeds.

    `warnings`: what the running workers lack for the job, which is queued in any case.
    """
    row = service.create(session, body)
    running = workers.listing(session, settings.lease_seconds, jobs={}, running_only=True)
    warnings = matching.warnings(running, body.config, body.needs)
    return QueuedJob(**service.view(session, row).model_dump(), warnings=warnings)


@router.get("", summary="List jobs", responses=problems() | _json_example(200, [JOB_EXAMPLE]))
def list_jobs(
    session: ReadSession,
    state: Annotated[JobState | None, Query(description="Filter by state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> list[Job]:
    """List jobs, newest first."""
    return service.listing(session, state=state, limit=limit, offset=offset)


@router.post(
    "/claim",
    summary="Claim a job",
    response_model=Lease,
    responses=problems()
    | _json_example(200, LEASE_EXAMPLE)
    | {204: {"description": "No job is waiting"}},
)
def claim_job(
    body: Claim, session: WorkSession, engine: EngineDep, settings: SettingsDep, clock: ClockDep
) -> Lease | Response:
    """Lease the queued job of highest priority whose needs the worker meets, with its release.

    A job whose data, weights or teacher the worker does not list is left to a running worker that
    lists them, if there is one. Also deletes the incomplete uploads of jobs that have ended.
    """
    if clock.was_set():
        with writing(engine) as lease_session:
            service.adjust_leases(lease_session, settings.lease_seconds)
        clock.remember()
    workers.touch(session, body.worker, gpu=body.gpu, memory_gb=body.memory_gb)
    lease = service.claim(
        session, body.worker, settings.lease_seconds, gpu=body.gpu, memory_gb=body.memory_gb
    )
    uploads.discard_ended(session, settings.artifact_dir)
    return lease if lease is not None else Response(status_code=204)


@router.get("/{job_id:int}", summary="Show a job", responses=problems(404) | _JOB)
def show_job(job_id: Id, session: ReadSession) -> Job:
    """Show a job."""
    return service.view(session, service.get(session, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=problems(404, 409) | _JOB)
def cancel_job(job_id: Id, session: WriteSession) -> Job:
    """Cancel a job: immediately if queued, else with its worker's next heartbeat."""
    return service.view(session, service.cancel(session, job_id))


@router.post("/{job_id}/retry", summary="Retry a job", responses=problems(404, 409) | _JOB)
def retry_job(job_id: Id, session: WriteSession) -> Job:
    """Queue a failed or cancelled job again. It resumes from its last checkpoint."""
    return service.view(session, service.retry(session, job_id))


@router.post("/{job_id}/heartbeat", summary="Renew a lease", responses=problems(404, 409))
def renew_lease(
    job_id: Id, body: Heartbeat, session: WorkSession, settings: SettingsDep
) -> Renewed:
    """Renew a lease. 409: the lease has expired and the worker must stop."""
    row = service.heartbeat(session, job_id, body.fence, settings.lease_seconds)
    assert row.lease_expires_at is not None and row.worker is not None
    workers.touch(session, row.worker)
    return Renewed(expires_at=row.lease_expires_at, cancel_requested=row.cancel_requested)


@router.post("/{job_id}/events", summary="Add events", responses=problems(404, 409))
def add_events(job_id: Id, body: EventsIn, session: WorkSession) -> EventsStored:
    """Append events of a worker. 409: the lease has expired and the worker must stop."""
    return EventsStored(stored=service.add_events(session, job_id, body.fence, body.events))


@router.post("/{job_id}/finish", summary="Finish a job", responses=problems(404, 409) | _JOB)
def finish_job(job_id: Id, body: Finish, session: WriteSession) -> Job:
    """Finish a job. Idempotent. 409: the lease has expired."""
    row = service.finish(
        session, job_id, body.fence, body.state, body.error, out_of_memory=body.out_of_memory
    )
    return service.view(session, row)


@router.get(
    "/{job_id}/events",
    summary="List events",
    responses=problems(404) | _json_example(200, [EVENT_EXAMPLE]),
)
def list_events(
    job_id: Id,
    session: ReadSession,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Only events with a higher seq")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> list[Event]:
    """List events of a job in order, without gaps."""
    service.get(session, job_id)
    return service.events(session, job_id, after=after, limit=limit)


def _existing_job(job_id: Id, session: ReadSession) -> int:
    service.get(session, job_id)
    return job_id


@router.get(
    "/{job_id}/events/stream",
    summary="Follow events",
    response_class=EventSourceResponse,
    responses=problems(404),
)
async def follow_events(
    job_id: Annotated[int, Depends(_existing_job)],
    request: Request,
    engine: EngineDep,
    settings: SettingsDep,
    last_event_id: Annotated[str | None, Header(description="Continue after this event")] = None,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Continue after this event")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Stream events as server-sent events with id = seq. The stream ends when the job is final."""
    seen = whole_number(last_event_id or "")
    seq = after if seen is None else min(seen, MAX_ID)
    read = partial(_read_update, engine, job_id)
    async for event in poll(request, read, seq, interval_s=settings.event_poll_seconds):
        yield event


def _read_update(engine: Engine, job_id: int, after: int) -> Update[int]:
    with reading(engine) as session:
        final = service.get(session, job_id).state.is_final
        events = service.events(session, job_id, after=after)
    return Update(
        events[-1].seq if events else after,
        [
            ServerSentEvent(data=event, event=event.kind.value, id=str(event.seq))
            for event in events
        ],
        final=final and not events,
        more=bool(events),
    )


@router.put(
    "/{job_id}/artifacts/{name}",
    summary="Store an artifact",
    response_model=ArtifactView,
    responses=problems(404, 409, 413)
    | {202: {"model": Upload, "description": "Incomplete: send the next chunk"}},
    openapi_extra={
        "requestBody": {
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "example": '{"report": "…"}',
                }
            },
        }
    },
)
async def store_artifact(
    job_id: Id,
    name: str,
    request: Request,
    fence: Annotated[Fence, Query()],
    engine: EngineDep,
    settings: SettingsDep,
    content_type: Annotated[str, Header()] = "application/octet-stream",
    x_content_sha256: Annotated[
        str | None, Header(pattern="^[0-9A-Fa-f]{64}$", description="SHA-256 of the whole file")
    ] = None,
    content_range: Annotated[
        str | None,
        Header(description="Of a chunk: bytes FIRST-LAST/TOTAL; bytes */TOTAL asks for the offset"),
    ] = None,
) -> ArtifactView | Response:
    """Store a file of a job whose lease the worker holds.

    Send large files in chunks with the hash of the whole file: a request without a body and with
    'Content-Range: bytes */TOTAL' returns the offset to start at; each chunk returns the next
    offset (202) until the file is complete (200). Ask for the offset again after an interruption.
    """
    artifacts.check_artifact_name(name)
    artifacts.check_media_type(content_type)
    sha256 = x_content_sha256 and x_content_sha256.lower()
    chunk = uploads.read_range(content_range) if content_range is not None else None
    await run_in_threadpool(_check_lease, engine, job_id, fence)
    folder, limit = settings.artifact_dir, settings.max_artifact_bytes
    if chunk is None:
        sha256, size = await uploads.receive(request.stream(), folder, sha256=sha256, limit=limit)
    elif sha256 is None:
        raise InvalidInput(
            "A chunk requires the header X-Content-SHA256, the hash of the whole file."
        )
    else:
        size = await uploads.receive_chunk(
            request.stream(), folder, chunk, job_id=job_id, sha256=sha256, limit=limit
        )
        if size < chunk.total:
            audit.mark_audited(request)  # only the last chunk is audited
            more = Upload(offset=size, chunk=min(uploads.CHUNK, settings.max_body_bytes))
            return JSONResponse(more.model_dump(), 202)
    return await run_in_threadpool(
        _record_artifact,
        engine,
        request,
        job_id,
        fence,
        JobArtifact(job_id=job_id, name=name, media_type=content_type, sha256=sha256, size=size),
    )


def _check_lease(engine: Engine, job_id: int, fence: str) -> None:
    with reading(engine) as session:
        service.held(session, job_id, fence)


def _record_artifact(
    engine: Engine, request: Request, job_id: int, fence: str, new: JobArtifact
) -> ArtifactView:
    with writing(engine) as session:
        audit.record(session, request)
        artifact = artifacts.record(
            session,
            job_id,
            fence,
            name=new.name,
            media_type=new.media_type,
            sha256=new.sha256,
            size=new.size,
        )
        return artifacts.view(artifact)


@router.get("/{job_id}/artifacts", summary="List artifacts", responses=problems(404))
def list_artifacts(job_id: Id, session: ReadSession) -> list[ArtifactView]:
    """List the artifacts of a job."""
    return [artifacts.view(artifact) for artifact in artifacts.listing(session, job_id)]


@router.get(
    "/{job_id}/artifacts/{name}",
    summary="Read an artifact",
    response_class=FileResponse,
    responses=problems(404),
)
def read_artifact(
    job_id: Id, name: str, session: ReadSession, settings: SettingsDep
) -> FileResponse:
    """Download an artifact."""
    return _file(artifacts.get(session, job_id, name), settings, attachment=True)


@router.get(
    "/{job_id}/report",
    summary="Read the report",
    response_class=FileResponse,
    responses=problems(404)
    | {
        200: {
            "model": Report,
            "description": "report.json as the worker wrote it",
            "content": {"application/json": {"example": REPORT_EXAMPLE}},
        }
    },
)
def read_report(job_id: Id, session: ReadSession, settings: SettingsDep) -> FileResponse:
    """Read report.json as the worker wrote it."""
    return _file(artifacts.get(session, job_id, "report.json"), settings)


@router.post(
    "/{job_id}/confusable",
    summary="Store the confusable labels of a job",
    responses=problems(404),
)
def store_confusable(job_id: Id, session: WriteSession, settings: SettingsDep) -> Confusable:
    """Store the most similar classes of a job's report in its label set.

    Replaces the lists of those labels. Prompts read the names as the variable `labels`.
    """
    return reports.store_confusable(session, settings.artifact_dir, job_id)


@router.get(
    "/{job_id}/report.html",
    summary="Show the report",
    response_class=FileResponse,
    responses=problems(404),
)
def show_report(job_id: Id, session: ReadSession, settings: SettingsDep) -> FileResponse:
    """Show the report of a job as an HTML page."""
    return _file(artifacts.get(session, job_id, "report.html"), settings)


def _file(artifact: JobArtifact, settings: Settings, *, attachment: bool = False) -> FileResponse:
    path = artifacts.location(settings.artifact_dir, artifact.sha256)
    if not path.is_file():
        raise NotFound(
            f"The file of artifact {artifact.name!r} is missing from the artifact folder: restore "
            "it from a backup."
        )
    return FileResponse(
        path,
        media_type=artifact.media_type,
        filename=artifact.name if attachment else None,
        headers=_PAGE_HEADERS | {"ETag": f'"{artifact.sha256}"'},
    )
