"""Releases over REST."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response

from contract import Release
from enrich_service.core.dependencies import MAX_ID, Id, ReadSession, SettingsDep, WriteSession
from enrich_service.core.problems import problems
from enrich_service.releases import service, translations
from enrich_service.releases.frozen import Frozen
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

_SAME: dict[int | str, dict[str, Any]] = {
    200: {"description": "This release is there already", "model": ReleaseView}
}


@router.post("", status_code=201, summary="Freeze a release", responses=problems(404, 409) | _SAME)
def create_release(body: ReleaseCreate, session: WriteSession, response: Response) -> ReleaseView:
    """Freeze one text for every label and kind; the text of a person wins.

    The same name with the same texts gives the release that is there, with 200.
    """
    row, new = service.create(session, body)
    response.status_code = 201 if new else 200
    return service.view(session, row)


@router.post(
    "/import",
    status_code=201,
    summary="Import a release",
    responses=problems(409, 413) | _SAME,
)
def import_release(
    body: Annotated[Release, Body(examples=[RELEASE_EXAMPLE])],
    session: WriteSession,
    response: Response,
    name: Annotated[str | None, Query(description="Another name for it here")] = None,
    label_set: Annotated[str | None, Query(description="Another label set for it here")] = None,
) -> ReleaseView:
    """Take in a release that was exported elsewhere; it keeps its hash."""
    row, new = service.take_in(session, body, name=name, label_set=label_set)
    response.status_code = 201 if new else 200
    return service.view(session, row)


@router.get("", summary="List releases", responses=problems())
def list_releases(
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Only of this label set")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[ReleaseView]:
    """List releases, the newest first, without their texts."""
    return service.listing(session, label_set=label_set, limit=limit, offset=offset)


@router.get(
    "/{release_id:int}",
    summary="Read a release",
    response_model=Release,
    responses=problems(404)
    | {
        200: {"content": {"application/json": {"example": RELEASE_EXAMPLE}}},
        304: {"description": "You have it already (If-None-Match)"},
    },
)
async def read_release(
    release_id: Id,
    request: Request,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The release as it was frozen, byte for byte. Its ETag is its hash."""
    known = [tag.strip().removeprefix("W/").strip('"') for tag in (if_none_match or "").split(",")]
    frozen: Frozen = request.app.state.frozen
    digest, body = await frozen.read(release_id)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if digest in known or "*" in known:
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
    """Queue a run that translates the texts of a release; each new text knows the old one.

    A release of the prompt and the language then freezes what it gave.
    """
    found = translations.prepared(session, release_id, body, settings, enricher.model.source)
    run = runs_service.create_run(
        session, found.body, found.plan, settings.prices, texts=found.texts
    )
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
    """Show the labels whose texts differ."""
    return service.diff(session, release_id, to)
