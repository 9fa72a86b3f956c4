"""Prompts over REST."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from enrich_service.core.rest.dependencies import MAX_ID, Id, ReadSession, WriteSession
from enrich_service.core.rest.problems import problems
from enrich_service.prompts import service
from enrich_service.prompts.schemas import (
    AliasMoveView,
    AliasPut,
    AliasRollback,
    AliasView,
    ArchivePut,
    PromptCreate,
    PromptView,
    TagsPut,
    VersionCreate,
    VersionDiff,
    VersionView,
)

router = APIRouter(prefix="/v1/prompts", tags=["prompts"])


@router.post("", status_code=201, summary="Create a prompt", responses=problems(409))
def create_prompt(body: PromptCreate, session: WriteSession) -> VersionView:
    """Create a prompt with its version 1."""
    prompt, version = service.create(session, body)
    return service.version_view(prompt, version)


@router.get("", summary="List prompts", responses=problems())
def list_prompts(
    session: ReadSession,
    search: Annotated[
        str, Query(max_length=200, description="Filter by name, summary or tag")
    ] = "",
    tag: Annotated[str | None, Query(max_length=200, description="Filter by exact tag")] = None,
    archived: Annotated[bool, Query(description="Include archived prompts")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[PromptView]:
    """List prompts by name."""
    return service.listing(
        session, archived=archived, search=search, tag=tag, limit=limit, offset=offset
    )


@router.get("/{name}", summary="Show a prompt", responses=problems(404))
def show_prompt(name: str, session: ReadSession) -> PromptView:
    """Show a prompt with its aliases."""
    return service.view(session, service.get(session, name))


@router.put("/{name}/archived", summary="Archive a prompt", responses=problems(404))
def archive_prompt(name: str, body: ArchivePut, session: WriteSession) -> PromptView:
    """Archive or restore a prompt. Its versions are kept."""
    prompt = service.get(session, name)
    service.set_archived(session, prompt, body.archived)
    return service.view(session, prompt)


@router.put("/{name}/tags", summary="Tag a prompt", responses=problems(404))
def tag_prompt(name: str, body: TagsPut, session: WriteSession) -> PromptView:
    """Replace the tags of a prompt."""
    prompt = service.get(session, name)
    service.set_tags(session, prompt, body.tags)
    return service.view(session, prompt)


@router.post(
    "/{name}/versions",
    status_code=201,
    summary="Add a version",
    responses=problems(404, 409)
    | {200: {"description": "The newest version has the same content", "model": VersionView}},
)
def add_version(
    name: str, body: VersionCreate, session: WriteSession, response: Response
) -> VersionView:
    """Add a version. Returns the newest version with 200 if the content is the same."""
    prompt = service.get(session, name)
    version, new = service.create_version(session, prompt, body)
    response.status_code = 201 if new else 200
    return service.version_view(prompt, version)


@router.get("/{name}/versions", summary="List the versions", responses=problems(404))
def list_versions(name: str, session: ReadSession) -> list[VersionView]:
    """List all versions of a prompt, newest first."""
    prompt = service.get(session, name)
    return [service.version_view(prompt, version) for version in service.versions(session, prompt)]


@router.get("/{name}/versions/{number}", summary="Show a version", responses=problems(404))
def show_version(name: str, number: Id, session: ReadSession) -> VersionView:
    """Show one version of a prompt."""
    prompt = service.get(session, name)
    return service.version_view(prompt, service.resolve(session, name, version=number))


@router.get("/{name}/diff", summary="Compare two versions", responses=problems(404))
def compare_versions(
    name: str,
    session: ReadSession,
    before: Annotated[
        int, Query(alias="from", ge=1, le=MAX_ID, description="Number of the older version")
    ],
    after: Annotated[
        int, Query(alias="to", ge=1, le=MAX_ID, description="Number of the newer version")
    ],
    context: Annotated[
        int | None,
        Query(ge=0, le=100, description="Equal lines around a change. Default: all"),
    ] = None,
) -> VersionDiff:
    """Show the changed fields between two versions, side by side."""
    return service.diff(session, service.get(session, name), before, after, context=context)


@router.get("/{name}/aliases/{alias}", summary="Resolve an alias", responses=problems(404))
def show_alias(name: str, alias: str, session: ReadSession) -> VersionView:
    """Show the version that an alias points at."""
    prompt = service.get(session, name)
    return service.version_view(prompt, service.resolve(session, name, alias=alias))


@router.put("/{name}/aliases/{alias}", summary="Move an alias", responses=problems(404, 409))
def move_alias(name: str, alias: str, body: AliasPut, session: WriteSession) -> AliasView:
    """Point an alias at a version. Moves are logged; a protected alias requires `confirm`."""
    return service.move_alias(session, service.get(session, name), alias, body)


@router.post(
    "/{name}/aliases/{alias}/rollback", summary="Roll an alias back", responses=problems(404, 409)
)
def roll_back_alias(name: str, alias: str, body: AliasRollback, session: WriteSession) -> AliasView:
    """Roll an alias back to its previous version."""
    return service.roll_back_alias(session, service.get(session, name), alias, body)


@router.get("/{name}/aliases/{alias}/moves", summary="List alias moves", responses=problems(404))
def list_alias_moves(name: str, alias: str, session: ReadSession) -> list[AliasMoveView]:
    """List the moves of an alias, newest first."""
    return service.alias_moves(session, service.get(session, name), alias)
