"""Pages of prompts: list, versions, diffs, aliases."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlmodel import Session

from enrich_service.core.errors import NotFound, UserError
from enrich_service.core.rest.dependencies import MAX_ID, Id, ReadSession, WriteSession
from enrich_service.generations.service import answers_by_version
from enrich_service.prompts import service
from enrich_service.prompts.models import PromptVersion
from enrich_service.prompts.schemas import AliasPut, AliasRollback, PromptView
from enrich_service.runs import service as run_service
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.page import page

router = APIRouter()

CONTEXT = 2  # equal lines shown around a change
FIELDS = {
    "system": "System message",
    "user": "User message",
    "output_schema": "Response schema",
    "model_defaults": "Parameters",
    "validators": "Rules",
}


@dataclass(frozen=True)
class Use:
    """Number of runs and answers of a prompt or version."""

    runs: int
    answers: int


def _uses(session: Session) -> dict[int, Use]:
    """Usage by prompt version id; unused versions are left out."""
    runs = run_service.runs_by_version(session)
    answers = answers_by_version(session)
    return {key: Use(runs.get(key, 0), answers.get(key, 0)) for key in runs | answers}


def _uses_by_prompt(session: Session) -> dict[str, Use]:
    """Usage of all versions together by prompt name; unused prompts are left out."""
    uses = _uses(session)
    names = service.names_by_version(session)  # read last: it has all versions of `uses`
    runs: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for version, use in uses.items():
        runs[names[version]] += use.runs
        answers[names[version]] += use.answers
    return {name: Use(runs[name], answers[name]) for name in runs}


@router.get("/prompts", response_class=HTMLResponse)
def list_prompts(
    request: Request,
    session: ReadSession,
    search: Annotated[str, Query(max_length=200)] = "",
    tag: Annotated[str, Query(max_length=200)] = "",
    archived: bool = False,
) -> HTMLResponse:
    """Prompts by name."""
    prompts = service.listing(
        session, search=search, tag=tag or None, archived=archived, limit=None
    )
    uses = _uses_by_prompt(session)
    return page(
        request,
        "prompts/list.html",
        prompts=[(prompt, uses.get(prompt.name, Use(0, 0))) for prompt in prompts],
        search=search,
        tag=tag,
        archived=archived,
    )


@router.get("/prompts/{name}", response_class=HTMLResponse)
def show_prompt(request: Request, name: str, session: ReadSession) -> HTMLResponse:
    """A prompt with its versions, newest first, and its alias history."""
    return prompt_page(request, session, name)


def prompt_page(
    request: Request,
    session: Session,
    name: str,
    *,
    error: UserError | None = None,
    given: Form | None = None,
) -> HTMLResponse:
    """The page of a prompt; `error`: why one of its forms, sent with `given`, was rejected."""
    prompt = service.get(session, name)
    view = service.view(session, prompt)
    uses = _uses(session)
    return page(
        request,
        "prompts/show.html",
        status=error.status if error else 200,
        prompt=view,
        versions=[
            (version, uses.get(version.id or 0, Use(0, 0)), _aliases_at(view, version.number))
            for version in service.versions(session, prompt)
        ],
        moves=service.alias_moves(session, prompt),
        error=error,
        given=given or {},
    )


def _aliases_at(prompt: PromptView, number: int) -> list[str]:
    return [alias.name for alias in prompt.aliases if alias.version == number]


@router.get("/prompts/{name}/versions/{number}", response_class=HTMLResponse)
def show_version(request: Request, name: str, number: Id, session: ReadSession) -> HTMLResponse:
    """A version with its content."""
    prompt = service.get(session, name)
    version = service.resolve(session, name, version=number)
    view = service.view(session, prompt)
    return page(
        request,
        "prompts/version.html",
        prompt=view,
        version=version,
        aliases=_aliases_at(view, number),
        use=_uses(session).get(version.id or 0, Use(0, 0)),
        fields=[(title, text_of(version, field)) for field, title in FIELDS.items()],
    )


def text_of(version: PromptVersion, field: str) -> str:
    """The content of one of FIELDS as editable text."""
    value = getattr(version, field)
    if isinstance(value, str):
        return value.replace("\r\n", "\n")
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


@router.get("/prompts/{name}/diff", response_class=HTMLResponse)
def compare_versions(
    request: Request,
    name: str,
    session: ReadSession,
    before: Annotated[int | None, Query(alias="from", ge=1, le=MAX_ID)] = None,
    after: Annotated[int | None, Query(alias="to", ge=1, le=MAX_ID)] = None,
    show: Annotated[str, Query(pattern="^(changes|all)$")] = "changes",
) -> HTMLResponse:
    """The diff of two versions; default: the newest and the one before it."""
    prompt = service.view(session, service.get(session, name))
    after = after or prompt.latest
    before = before or max(1, after - 1)
    context = CONTEXT if show == "changes" else None
    diff = service.diff(session, service.get(session, name), before, after, context=context)
    changed = {change.field: change.rows for change in diff.changed}
    return page(
        request,
        "prompts/diff.html",
        prompt=prompt,
        before=before,
        new=service.resolve(session, name, version=after),
        fields=[(title, changed[field]) for field, title in FIELDS.items() if field in changed],
        equal=[title for field, title in FIELDS.items() if field not in changed],
        show=show,
    )


@router.post("/prompts/{name}/aliases")
def move_alias(request: Request, name: str, form: SentForm, session: WriteSession) -> Response:
    """Point an alias, named in the form, at a version."""
    try:
        with session.begin_nested():
            fields = {key: form[key] for key in ("version", "reason", "author") if key in form}
            body = parse_form(AliasPut, fields | {"confirm": form.is_checked("confirm")})
            service.move_alias(session, service.get(session, name), form.get("alias", ""), body)
    except NotFound:
        raise
    except UserError as error:
        return prompt_page(request, session, name, error=error, given=form)
    return redirect(request.url.path.removesuffix("/aliases"), form)


@router.post("/prompts/{name}/aliases/{alias}/rollback")
def roll_back_alias(
    request: Request, name: str, alias: str, form: SentForm, session: WriteSession
) -> Response:
    """Roll an alias back to its previous version."""
    try:
        with session.begin_nested():
            fields = {key: form[key] for key in ("reason", "author") if key in form}
            body = parse_form(AliasRollback, fields | {"confirm": form.is_checked("confirm")})
            service.roll_back_alias(session, service.get(session, name), alias, body)
    except NotFound:
        raise
    except UserError as error:
        return prompt_page(request, session, name, error=error, given=form)
    return redirect(request.url.path.removesuffix(f"/aliases/{alias}/rollback"), form)
