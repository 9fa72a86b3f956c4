"""Students over REST."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse

from enrich_service.core.rest.dependencies import Id, ReadSession, SettingsDep, WriteSession
from enrich_service.core.rest.etags import is_known
from enrich_service.core.rest.problems import problems
from enrich_service.students import service
from enrich_service.students.schemas import (
    StudentAliasMoveView,
    StudentAliasPut,
    StudentAliasRollback,
    StudentAliasView,
    StudentRegister,
    StudentVersionView,
    StudentView,
)

router = APIRouter(prefix="/v1/students", tags=["students"])

_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Not modified (If-None-Match)"}
}
IfNoneMatch = Annotated[str | None, Header()]


@router.post("", status_code=201, summary="Register a student", responses=problems(404, 409))
def register_student(
    body: StudentRegister, session: WriteSession, settings: SettingsDep
) -> StudentVersionView:
    """Register the classifier of a succeeded job as the next version of a student.

    The first version creates the student. Pruning keeps the classifiers of registered jobs.
    """
    version = service.register(session, settings.artifact_dir, body)
    student = service.get(session, body.name)
    return service.version_view(session, student, version.number)


@router.get("", summary="List students", responses=problems())
def list_students(
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[StudentView]:
    """List students by name."""
    return service.listing(session, limit=limit, offset=offset)


@router.get("/{name}", summary="Show a student", responses=problems(404))
def show_student(name: str, session: ReadSession) -> StudentView:
    """Show a student with its aliases."""
    return service.view(session, service.get(session, name))


@router.get("/{name}/versions", summary="List the versions of a student", responses=problems(404))
def list_student_versions(name: str, session: ReadSession) -> list[StudentVersionView]:
    """List all versions of a student with their figures, newest first."""
    return service.versions(session, student=service.get(session, name))


@router.get(
    "/{name}/versions/{number}", summary="Show a version of a student", responses=problems(404)
)
def show_student_version(name: str, number: Id, session: ReadSession) -> StudentVersionView:
    """Show one version of a student."""
    return service.version_view(session, service.get(session, name), number)


@router.get(
    "/{name}/versions/{number}/classifier",
    summary="Download a classifier",
    response_class=FileResponse,
    responses=problems(404)
    | _NOT_MODIFIED
    | {
        200: {
            "description": "classifier.zip",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {"description": "A part of classifier.zip (Range)"},
    },
)
def download_classifier(
    name: str,
    number: Id,
    session: ReadSession,
    settings: SettingsDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download the classifier folder of a version as a zip. Its ETag is its SHA-256."""
    version = service.get_version(session, service.get(session, name), number)
    headers = {"ETag": f'"{version.sha256}"', "Cache-Control": "private, no-cache"}
    if is_known(version.sha256, if_none_match):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        service.classifier_file(settings.artifact_dir, version),
        media_type="application/zip",
        filename=f"{name}-{number}.zip",
        headers=headers,
    )


@router.get(
    "/{name}/aliases/{alias}",
    summary="Resolve an alias of a student",
    response_model=StudentAliasView,
    responses=problems(404) | _NOT_MODIFIED,
)
def show_student_alias(
    name: str,
    alias: str,
    session: ReadSession,
    response: Response,
    if_none_match: IfNoneMatch = None,
) -> StudentAliasView | Response:
    """Show the version that an alias points at, and the path of its classifier.

    To follow an alias, repeat the request with the ETag of the last answer in If-None-Match.
    """
    target = service.resolve(session, service.get(session, name), alias)
    etag = f"{target.version}-{target.sha256}"
    headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
    if is_known(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return target


@router.put(
    "/{name}/aliases/{alias}", summary="Move an alias of a student", responses=problems(404)
)
def move_student_alias(
    name: str, alias: str, body: StudentAliasPut, session: WriteSession
) -> StudentAliasView:
    """Point an alias at a version. Moves are logged with their reason."""
    return service.move_alias(session, service.get(session, name), alias, body)


@router.post(
    "/{name}/aliases/{alias}/rollback",
    summary="Roll an alias of a student back",
    responses=problems(404, 409),
)
def roll_back_student_alias(
    name: str, alias: str, body: StudentAliasRollback, session: WriteSession
) -> StudentAliasView:
    """Roll an alias back to its previous version."""
    return service.roll_back_alias(session, service.get(session, name), alias, body)


@router.get(
    "/{name}/aliases/{alias}/moves",
    summary="List the moves of a student's alias",
    responses=problems(404),
)
def list_student_alias_moves(
    name: str, alias: str, session: ReadSession
) -> list[StudentAliasMoveView]:
    """List the moves of an alias, newest first."""
    student = service.get(session, name)
    service.resolve(session, student, alias)
    return service.alias_moves(session, student, alias)
