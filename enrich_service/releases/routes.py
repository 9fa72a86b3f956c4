"""Releases over REST."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response

from contract import Release
from enrich_service.core.rest.dependencies import MAX_ID, Id, ReadSession, SettingsDep, WriteSession
from enrich_service.core.rest.etags import is_known
from enrich_service.core.rest.problems import problems
from enrich_service.releases import service, translations
from enrich_service.releases.body_cache import BodyCache
from enrich_service.releases.schemas import (
    RELEASE_EXAMPLE,
    ReleaseCreate,
    ReleaseDiff,
    ReleaseView,
    TranslationCreate,
)
from enrich_service.runs import service as runs_service
from enrich_service.runs.routes import EnricherDep, RunsDep
from enrich_service.runs.schemas import RunView

router = APIRouter(prefix="/v1/releases", tags=["releases"])

_EXISTING: dict[int | str, dict[str, Any]] = {
    200: {"description": "A release with this name and these texts exists", "model": ReleaseView}
}


@router.post(
    "", status_code=201, summary="Create a release", responses=problems(404, 409) | _EXISTING
)
def create_release(body: ReleaseCreate, session: WriteSession, response: Response) -> ReleaseView:
    """Create a release: one text for every label and kind. Texts written by people are preferred.

    Returns the existing release with 200 if its name and texts are the same.
    """
    row, new = service.create(session, body)
    response.status_code = 201 if new else 200
    return service.view(session, row)


@router.post(
    "/import",
    status_code=201,
    summary="Import a release",
    responses=problems(409, 413) | _EXISTING,
)
def import_release(
    body: Annotated[Release, Body(examples=[RELEASE_EXAMPLE])],
    session: WriteSession,
    response: Response,
    name: Annotated[str | None, Query(description="New name of the release")] = None,
    label_set: Annotated[str | None, Query(description="Label set to import into")] = None,
) -> ReleaseView:
    """Import a release of another service. Its hash is kept."""
    row, new = service.import_release(session, body, name=name, label_set=label_set)
    response.status_code = 201 if new else 200
    return service.view(session, row)


@router.get("", summary="List releases", responses=problems())
def list_releases(
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Filter by label set")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[ReleaseView]:
    """List releases without their texts, newest first."""
    return service.listing(session, label_set=label_set, limit=limit, offset=offset)


@router.get(
    "/{release_id:int}",
    summary="Read a release",
    response_model=Release,
    responses=problems(404)
    | {
        200: {"content": {"application/json": {"example": RELEASE_EXAMPLE}}},
        304: {"description": "Not modified (If-None-Match)"},
    },
)
async def read_release(
    release_id: Id,
    request: Request,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Read a release; the bytes never change. Its ETag is its hash."""
    bodies: BodyCache = request.app.state.release_bodies
    digest, body = await bodies.read(release_id)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if is_known(digest, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.post(
    "/{release_id}/translations",
    status_code=201,
    summary="Translate a release",
    responses=problems(404, 409),
)
def translate_release(
    release_id: Id,
    body: TranslationCreate,
    session: WriteSession,
    settings: SettingsDep,
    enricher: EnricherDep,
    runs: RunsDep,
) -> RunView:
    """Queue a run that translates the texts of a release. Each new text references the old one.

    Create a release with the prompt and the language to use the translations.
    """
    plan = translations.prepare(session, release_id, body, settings, enricher.source)
    run = runs_service.create_run(session, plan.body, plan.plan, settings.prices, texts=plan.texts)
    view = runs_service.run_view(session, run)
    session.commit()
    runs.wake()
    return view


@router.get("/{release_id}/diff", summary="Compare two releases", responses=problems(404))
def compare_releases(
    release_id: Id,
    session: ReadSession,
    to: Annotated[int, Query(ge=1, le=MAX_ID, description="Id of the release to compare with")],
) -> ReleaseDiff:
    """List the labels whose texts differ."""
    return service.diff(session, release_id, to)
