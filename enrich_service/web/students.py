"""Pages of students: list, comparison of versions, aliases; registration from a job's page."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlmodel import Session

from enrich_service.core.errors import NotFound, UserError
from enrich_service.core.rest.dependencies import Id, ReadSession, SettingsDep, WriteSession
from enrich_service.students import service
from enrich_service.students.schemas import (
    StudentAliasPut,
    StudentAliasRollback,
    StudentRegister,
    StudentVersionView,
)
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.jobs.pages import job_page
from enrich_service.web.page import page

router = APIRouter()

HIGHEST = ("seen", "unseen", "joint_harmonic_mean")
LOWEST = ("parameters", "bytes", "latency_ms")


@router.get("/students", response_class=HTMLResponse)
def list_students(request: Request, session: ReadSession) -> HTMLResponse:
    """Students by name, each with its newest version."""
    newest = service.newest_versions(session)
    students = [(student, newest[student.name]) for student in service.listing(session, limit=None)]
    return page(request, "students/list.html", students=students)


@router.get("/students/{name}", response_class=HTMLResponse)
def show_student(request: Request, name: str, session: ReadSession) -> HTMLResponse:
    """A student with its versions, newest first, and its alias history."""
    return _student(request, session, name)


def _student(
    request: Request,
    session: Session,
    name: str,
    *,
    error: UserError | None = None,
    given: Form | None = None,
) -> HTMLResponse:
    student = service.get(session, name)
    versions = service.versions(session, student=student)
    return page(
        request,
        "students/show.html",
        status=error.status if error else 200,
        student=service.view(session, student),
        versions=versions,
        best=_best(versions),
        moves=service.alias_moves(session, student),
        error=error,
        given=given or {},
    )


def _best(versions: list[StudentVersionView]) -> dict[str, Any]:
    """The best value of each figure in which the versions differ."""
    best = {}
    for names, choose in ((HIGHEST, max), (LOWEST, min)):
        for name in names:
            values = {getattr(version, name) for version in versions} - {None}
            if len(values) > 1:
                best[name] = choose(values)
    return best


@router.post("/jobs/{job_id}/students")
def register_student(
    request: Request, job_id: Id, form: SentForm, session: WriteSession, settings: SettingsDep
) -> Response:
    """Register the classifier of a job as a version of a student."""
    try:
        with session.begin_nested():
            fields = {key: form.get(key, "") for key in ("name", "message", "author")}
            body = parse_form(StudentRegister, fields | {"job_id": job_id})
            service.register(session, settings.artifact_dir, body)
    except NotFound:
        raise
    except UserError as error:
        return job_page(request, session, settings, job_id, error=error, given=form)
    return redirect(f"/students/{quote(body.name)}", form)


@router.post("/students/{name}/aliases")
def move_student_alias(
    request: Request, name: str, form: SentForm, session: WriteSession
) -> Response:
    """Point an alias, named in the form, at a version."""
    try:
        with session.begin_nested():
            fields = {key: form[key] for key in ("version", "reason", "author") if key in form}
            body = parse_form(StudentAliasPut, fields)
            student = service.get(session, name)
            service.move_alias(session, student, form.get("alias", ""), body)
    except NotFound:
        raise
    except UserError as error:
        return _student(request, session, name, error=error, given=form)
    return redirect(f"/students/{quote(name)}", form)


@router.post("/students/{name}/aliases/{alias}/rollback")
def roll_back_student_alias(
    request: Request, name: str, alias: str, form: SentForm, session: WriteSession
) -> Response:
    """Roll an alias back to its previous version."""
    try:
        with session.begin_nested():
            fields = {key: form[key] for key in ("reason", "author") if key in form}
            body = parse_form(StudentAliasRollback, fields)
            service.roll_back_alias(session, service.get(session, name), alias, body)
    except NotFound:
        raise
    except UserError as error:
        return _student(request, session, name, error=error, given=form)
    return redirect(f"/students/{quote(name)}", form)
