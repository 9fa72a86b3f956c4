"""Forms that create, tag and archive prompts. The playground saves new versions."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlmodel import Session

from enrich_service.core.errors import UserError
from enrich_service.core.rest.dependencies import ReadSession, WriteSession
from enrich_service.prompts import service
from enrich_service.prompts.schemas import PromptCreate, PromptKind
from enrich_service.runs.schemas import Choice
from enrich_service.web.forms import SentForm, parse_form, redirect
from enrich_service.web.page import page
from enrich_service.web.prompts.pages import FIELDS, prompt_page, text_of
from enrich_service.web.prompts.playground import JSON_FIELDS, content_of

router = APIRouter()
_DEFAULT_PROMPT = Choice.model_fields["prompt"].default


# "-" is not a valid prompt name.
@router.get("/prompts/-/new", response_class=HTMLResponse)
def choose_prompt(
    request: Request,
    session: ReadSession,
    like: Annotated[str, Query(max_length=200, description="Prompt to start from")] = "",
) -> HTMLResponse:
    """The form of a new prompt, with the content of prompt `like`; default: the default prompt."""
    given: Mapping[str, str] = {}
    names = [prompt.name for prompt in service.listing(session, limit=None)]
    name = like or (_DEFAULT_PROMPT if _DEFAULT_PROMPT in names else "")
    if name:
        prompt, newest = service.get(session, name), service.resolve(session, name)
        given = {field: text_of(newest, field) for field in FIELDS} | {"kind": prompt.kind}
    return _new(request, given, like=name)


def _new(
    request: Request,
    given: Mapping[str, str],
    *,
    like: str = "",
    error: UserError | None = None,
) -> HTMLResponse:
    return page(
        request,
        "prompts/new.html",
        status=error.status if error else 200,
        given={**dict.fromkeys(FIELDS, ""), **given},
        fields=FIELDS,
        json_fields=JSON_FIELDS,
        kinds=[kind.value for kind in PromptKind],
        like=like,
        error=error,
    )


@router.post("/prompts")
def create_prompt(request: Request, form: SentForm, session: WriteSession) -> Response:
    """Create a prompt with its version 1."""
    try:
        with session.begin_nested():
            names = ("name", "kind", "summary", "message", "author")
            fields = {key: form[key] for key in names if key in form}
            body = parse_form(
                PromptCreate, content_of(form) | fields | {"tags": _lines(form.get("tags", ""))}
            )
            service.create(session, body)
    except UserError as error:
        return _new(request, form, error=error)
    return redirect(f"/prompts/{quote(body.name)}", form)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@router.post("/prompts/{name}/tags")
def tag_prompt(request: Request, name: str, form: SentForm, session: WriteSession) -> Response:
    """Replace the tags of a prompt."""
    prompt = service.get(session, name)
    try:
        with session.begin_nested():
            service.set_tags(session, prompt, _lines(form.get("tags", "")))
    except UserError as error:
        return prompt_page(request, session, name, error=error, given=form)
    return redirect(f"/prompts/{quote(name)}", form)


@router.post("/prompts/{name}/archive")
def archive_prompt(name: str, form: SentForm, session: WriteSession) -> Response:
    """Archive a prompt."""
    return _archived(session, name, form, archived=True)


@router.post("/prompts/{name}/restore")
def restore_prompt(name: str, form: SentForm, session: WriteSession) -> Response:
    """Restore an archived prompt."""
    return _archived(session, name, form, archived=False)


def _archived(session: Session, name: str, form: SentForm, *, archived: bool) -> Response:
    service.set_archived(session, service.get(session, name), archived)
    return redirect(f"/prompts/{quote(name)}", form)
