"""Pages of label sets: labels with their current texts, and all texts of a label."""

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlmodel import Session

from enrich_service.core.errors import InvalidInput, NotFound, UserError
from enrich_service.core.rest.dependencies import MAX_ID, Id, ReadSession, SettingsDep, WriteSession
from enrich_service.core.text import whole_number
from enrich_service.generations import edits, reviews
from enrich_service.generations.models import GenerationSource
from enrich_service.generations.schemas import (
    GenerationDetail,
    GenerationView,
    LabelTextIn,
    ReviewIn,
    TextIn,
)
from enrich_service.generations.service import generation_detail, generation_view, texts_of_label
from enrich_service.generations.store import get_generation
from enrich_service.labels import files, service
from enrich_service.labels.models import LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.differences import side_by_side
from enrich_service.prompts.models import PromptVersion
from enrich_service.prompts.schemas import DEFAULT_PROMPT, PromptKind, PromptView
from enrich_service.releases import current_texts
from enrich_service.runs.plan import choose
from enrich_service.runs.schemas import Choice
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.page import csv_file, page

router = APIRouter()
PAGE_SIZE = 50
MAX_TEXTS = 200  # on the page of a label
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]
Search = Annotated[str, Query(max_length=300)]


@router.get("/label-sets", response_class=HTMLResponse)
def list_label_sets(request: Request, session: ReadSession) -> HTMLResponse:
    """Label sets by name, and the form of a new one."""
    return _sets(request, session)


def _sets(
    request: Request,
    session: Session,
    *,
    error: UserError | None = None,
    given: Form | None = None,
) -> HTMLResponse:
    return page(
        request,
        "labels/sets.html",
        status=error.status if error else 200,
        label_sets=service.listing(session, limit=None),
        error=error,
        given=given or {},
    )


@router.post("/label-sets")
def create_label_set(request: Request, form: SentForm, session: WriteSession) -> Response:
    """Create a label set from pasted names or a CSV file."""
    try:
        with session.begin_nested():
            label_set = service.create(session, form.get("name", ""), *_labels(form))
    except UserError as error:
        return _sets(request, session, error=error, given=form)
    return redirect(f"/label-sets/{quote(label_set.name)}", form)


def _labels(form: Form) -> files.LabelTable:
    """The labels, and for those of a file their lines and what is wrong with others."""
    if "file" in form.files:
        return files.from_table(form.files["file"])
    names = [line.strip() for line in form.get("names", "").splitlines() if line.strip()]
    if not names:
        raise InvalidInput("Give names, one per line, or a CSV file")
    labels = [LabelIn(name=name, context=form.get("context")) for name in names]
    return files.LabelTable(labels, [], [])


# ----------------------------------------------------------------------------------- a label set


def _chosen_version(
    session: Session, settings: SettingsDep, prompt: str | None, version: int | None
) -> tuple[PromptView, PromptVersion]:
    """The prompt and version whose texts are shown. Raises NotFound if there are no prompts."""
    if prompt is None:
        names = [prompt.name for prompt in prompt_service.listing(session, limit=None)]
        if not names:
            raise NotFound("There is no prompt yet: add one with `enrich prompts add`.")
        prompt = DEFAULT_PROMPT if DEFAULT_PROMPT in names else names[0]
    choice = Choice(prompt=prompt, version=version)
    plan = choose(session, choice, settings, GenerationSource.MODEL)
    return prompt_service.view(session, prompt_service.get(session, plan.prompt)), plan.version


@router.get("/label-sets/{name}", response_class=HTMLResponse)
def show_label_set(
    request: Request,
    name: str,
    session: ReadSession,
    settings: SettingsDep,
    prompt: str | None = None,
    version: str = "",
    search: Search = "",
    state: str = "",
    offset: Offset = 0,
) -> HTMLResponse:
    """One page of labels with their current texts."""
    label_set = service.get(session, name)
    chosen_prompt, chosen_version = _chosen_version(
        session, settings, prompt or None, _number(version)
    )
    rows, total = _rows(session, label_set, chosen_version, search, state, PAGE_SIZE, offset)
    prompts = prompt_service.listing(session, limit=None)
    return page(
        request,
        "labels/set.html",
        label_set=service.view(session, label_set),
        prompts=prompts,
        prompt=chosen_prompt,
        version=chosen_version,
        rows=rows,
        total=total,
        search=search,
        state=state,
        states=list(current_texts.TextState),
        first=offset,
        size=PAGE_SIZE,
    )


def _number(version: str) -> int | None:
    """The version number in a query; None if empty."""
    if not version:
        return None
    number = whole_number(version)
    if number is None or not 0 < number <= MAX_ID:
        raise InvalidInput(f"version: {version[:20]!r} is not a version number")
    return number


def _rows(
    session: Session,
    label_set: LabelSet,
    version: PromptVersion,
    search: str,
    state: str,
    limit: int | None,
    offset: int,
) -> tuple[list[current_texts.LabelText], int]:
    if state not in ("", *current_texts.TextState):
        raise InvalidInput(f"state: must be one of {', '.join(current_texts.TextState)}")
    return current_texts.page(
        session,
        label_set,
        version,
        search=search,
        state=current_texts.TextState(state) if state else None,
        limit=limit,
        offset=offset,
    )


@router.get("/label-sets/{name}/texts.csv")
def download_texts(
    name: str,
    session: ReadSession,
    settings: SettingsDep,
    prompt: str | None = None,
    version: str = "",
    search: Search = "",
    state: str = "",
) -> Response:
    """All rows of the table as CSV."""
    label_set = service.get(session, name)
    _, chosen_version = _chosen_version(session, settings, prompt or None, _number(version))
    rows, _ = _rows(session, label_set, chosen_version, search, state, None, 0)
    return csv_file(
        "texts.csv",
        ("key", "name", "context", "state", "text", "flags", "problems", "edits"),
        (
            (
                row.label.key,
                row.label.name,
                row.label.context or "",
                row.state,
                row.text or "",
                "; ".join(row.flags),
                "; ".join(row.problems),
                row.edits,
            )
            for row in rows
        ),
    )


# --------------------------------------------------------------------------------------- a label


@router.get("/labels/{label_id}", response_class=HTMLResponse)
def show_label(
    request: Request,
    label_id: Id,
    session: ReadSession,
    settings: SettingsDep,
    prompt: str | None = None,
    before: Annotated[int | None, Query(alias="from", ge=1, le=MAX_ID)] = None,
    after: Annotated[int | None, Query(alias="to", ge=1, le=MAX_ID)] = None,
) -> HTMLResponse:
    """A label with all its texts."""
    compared = None
    if before is not None and after is not None:
        compared = (_view(session, before), _view(session, after))
    return _label(request, session, settings, label_id, prompt=prompt, compared=compared)


def _label(
    request: Request,
    session: Session,
    settings: SettingsDep,
    label_id: int,
    *,
    prompt: str | None = None,
    compared: tuple[GenerationView, GenerationView] | None = None,
    error: UserError | None = None,
    given: Form | None = None,
) -> HTMLResponse:
    label, label_set = service.label(session, label_id)
    chosen, version = _chosen_version(session, settings, prompt or None, None)
    row = current_texts.row(session, label_set, label, version)
    texts = texts_of_label(session, label, limit=MAX_TEXTS)
    return page(
        request,
        "labels/label.html",
        status=error.status if error else 200,
        label=label,
        label_set=label_set,
        prompts=prompt_service.listing(session, limit=None),
        prompt=chosen,
        version=version,
        row=row,
        editable=_editable(session, row, chosen),
        groups=_group_by_origin(texts),
        texts=texts,
        compared=compared,
        rows=side_by_side([compared[0].text or ""], [compared[1].text or ""]) if compared else (),
        error=error,
        given=given or {},
    )


def _group_by_origin(texts: Sequence[GenerationView]) -> list[tuple[str, list[GenerationView]]]:
    """Group texts by prompt version and model, the group with the newest text first."""

    def origin(generation: GenerationView) -> str:
        if generation.source in (GenerationSource.PERSON, GenerationSource.IMPORT):
            return (
                "Written by people" if generation.source is GenerationSource.PERSON else "Imported"
            )
        model = generation.model or generation.source
        return f"{generation.prompt} {generation.prompt_version}, {model}"

    newest = {origin(generation): -generation.id for generation in reversed(texts)}
    ordered = sorted(texts, key=lambda generation: (newest[origin(generation)], -generation.id))
    return [(name, list(group)) for name, group in groupby(ordered, key=origin)]


def _editable(session: Session, row: current_texts.LabelText, prompt: PromptView) -> str:
    """The initial text of the edit form: a description, or several texts, one per line."""
    if row.generation_id is None or row.text is None:
        return ""
    detail = _detail(session, row.generation_id)
    if prompt.kind is PromptKind.ATTRIBUTES:
        return "\n".join(
            f"{name}: {'; '.join(values)}" for name, values in detail.attributes.items()
        )
    return "\n".join(detail.texts)


def _view(session: Session, generation_id: int) -> GenerationView:
    return generation_view(session, get_generation(session, generation_id))


def _detail(session: Session, generation_id: int) -> GenerationDetail:
    return generation_detail(session, get_generation(session, generation_id))


@router.post("/labels/{label_id}/texts")
def write_text(
    request: Request,
    label_id: Id,
    form: SentForm,
    session: WriteSession,
    settings: SettingsDep,
) -> Response:
    """Store a person's text; `parent` is the generation that it replaces."""
    prompt = form.get("prompt", "")
    try:
        with session.begin_nested():
            kind = prompt_service.view(session, prompt_service.get(session, prompt)).kind
            body = parse_form(TextIn, _written(form, kind) | {"author": form.get("author", "")})
            parent = whole_number(form.get("parent", ""))
            if parent is not None and parent <= MAX_ID:
                edits.edit_generation(session, parent, body)
            else:
                edits.write_text(session, label_id, LabelTextIn(prompt=prompt, **body.model_dump()))
    except NotFound:
        raise
    except UserError as error:
        return _label(request, session, settings, label_id, prompt=prompt, error=error, given=form)
    return redirect(f"/labels/{label_id}?{urlencode({'prompt': prompt})}", form)


def _written(form: Form, kind: PromptKind) -> dict[str, Any]:
    text = form.get("text", "")
    if kind is not PromptKind.ATTRIBUTES:
        return {"text": text or None}
    parsed: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        name, colon, values = line.partition(":")
        if not colon:
            raise InvalidInput(f"{line[:60]!r} is not an attribute: write NAME: VALUE; VALUE")
        parsed[name.strip()] = [value.strip() for value in values.split(";") if value.strip()]
    return {"parsed": parsed}


@router.get("/generations/{generation_id}", response_class=HTMLResponse)
def show_generation(request: Request, generation_id: Id, session: ReadSession) -> HTMLResponse:
    """One text with its provenance and reviews."""
    return page(
        request,
        "labels/generation.html",
        generation=_detail(session, generation_id),
        reviews=reviews.log_of(session, generation_id),
    )


@router.post("/generations/{generation_id}/reviews")
def review_text(generation_id: Id, form: SentForm, session: WriteSession) -> Response:
    """Review a text, and redirect to the page of its label or its own."""
    given = {key: form[key] for key in ("action", "reason", "author") if key in form}
    body = parse_form(ReviewIn, given | {"generations": [generation_id]})
    reviews.review(session, body.generations, body.action, reason=body.reason, author=body.author)
    label_id, prompt = form.get("label", ""), form.get("prompt", "")
    if label_id.isdecimal():
        return redirect(f"/labels/{label_id}?{urlencode({'prompt': prompt})}", form)
    return redirect(f"/generations/{generation_id}", form)
