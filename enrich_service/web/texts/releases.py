"""Pages of releases: list, form, texts, diffs."""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlmodel import Session

from contract import Release, ReleaseLabel, TextSource
from enrich_service.core.errors import UserError
from enrich_service.core.rest.dependencies import MAX_ID, Id, ReadSession, SettingsDep, WriteSession
from enrich_service.jobs import service as job_service
from enrich_service.labels import service as label_service
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.differences import side_by_side
from enrich_service.prompts.schemas import DEFAULT_PROMPT, RELEASED_KINDS, DiffRow
from enrich_service.releases import service, translations
from enrich_service.releases.schemas import (
    LabelChange,
    ReleaseCreate,
    ReleaseSource,
    TranslationCreate,
)
from enrich_service.runs import service as run_service
from enrich_service.runs.routes import EnricherDep, RunsDep
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.page import csv_file, page

router = APIRouter()
PAGE_SIZE = 50
CHANGES_PER_PAGE = 20
MAX_JOBS = 50  # on the page of a release
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]


@router.get("/releases", response_class=HTMLResponse)
def list_releases(request: Request, session: ReadSession, offset: Offset = 0) -> HTMLResponse:
    """Releases, newest first."""
    releases = service.listing(session, limit=PAGE_SIZE + 1, offset=offset)
    return page(
        request,
        "releases/list.html",
        releases=releases[:PAGE_SIZE],
        more=len(releases) > PAGE_SIZE,
        first=offset,
        size=PAGE_SIZE,
    )


@router.get("/releases/new", response_class=HTMLResponse)
def choose_release(
    request: Request, session: ReadSession, label_set: str | None = None
) -> HTMLResponse:
    """The form of a new release."""
    given = Form({"label_set": label_set} if label_set else {})
    return _form(request, session, given)


def _form(
    request: Request, session: Session, given: Form, error: UserError | None = None
) -> HTMLResponse:
    all_prompts = prompt_service.listing(session, limit=None)
    prompts = [prompt for prompt in all_prompts if prompt.kind in RELEASED_KINDS]
    chosen = {prompt.name: given.get(f"from {prompt.name}", "") for prompt in prompts}
    default = next((prompt for prompt in prompts if prompt.name == DEFAULT_PROMPT), None)
    if error is None and default is not None:
        in_use = any(alias.name == "production" for alias in default.aliases)
        chosen[default.name] = "@production" if in_use else str(default.latest)
    return page(
        request,
        "releases/new.html",
        status=error.status if error else 200,
        error=error,
        given=given,
        chosen=chosen,
        label_sets=label_service.listing(session, limit=None),
        prompts=prompts,
    )


@router.post("/releases")
def create_release(request: Request, form: SentForm, session: WriteSession) -> Response:
    """Create a release."""
    try:
        with session.begin_nested():
            names = ("label_set", "name", "message", "author")
            body = parse_form(
                ReleaseCreate,
                {key: form[key] for key in names if key in form}
                | {
                    "sources": _sources(form),
                    "languages": [form["language"]] if form.get("language") else [],
                    "allow_missing": form.is_checked("allow_missing"),
                    "approved_only": form.is_checked("approved_only"),
                },
            )
            row, _ = service.create(session, body)
    except UserError as error:
        return _form(request, session, form, error)
    return redirect(f"/releases/{row.id}", form)


def _sources(form: Form) -> list[ReleaseSource]:
    """Parse the form fields `from PROMPT`: a version number or @ALIAS."""
    chosen = {
        name.removeprefix("from "): value
        for name, value in form.items()
        if name.startswith("from ")
    }
    return [
        parse_form(
            ReleaseSource,
            {"prompt": prompt}
            | ({"alias": value[1:]} if value.startswith("@") else {"version": value}),
        )
        for prompt, value in chosen.items()
    ]


@router.get("/releases/{release_id}", response_class=HTMLResponse)
def show_release(
    request: Request,
    release_id: Id,
    session: ReadSession,
    search: Annotated[str, Query(max_length=300)] = "",
    offset: Offset = 0,
) -> HTMLResponse:
    """A release with one page of its texts, and its jobs."""
    return _show(request, session, release_id, search=search, offset=offset)


@router.post("/releases/{release_id}/translations")
def translate_release(
    request: Request,
    release_id: Id,
    form: SentForm,
    session: WriteSession,
    settings: SettingsDep,
    enricher: EnricherDep,
    runs: RunsDep,
) -> Response:
    """Queue a run that translates its texts."""
    try:
        with session.begin_nested():
            plan = translations.prepare(
                session,
                release_id,
                parse_form(TranslationCreate, form),
                settings,
                enricher.source,
            )
            run = run_service.create_run(
                session, plan.body, plan.plan, settings.prices, texts=plan.texts
            )
    except UserError as error:
        return _show(request, session, release_id, given=form, error=error)
    session.commit()
    runs.wake()
    return redirect(f"/runs/{run.id}", form)


def _show(
    request: Request,
    session: Session,
    release_id: int,
    *,
    search: str = "",
    offset: int = 0,
    given: Form | None = None,
    error: UserError | None = None,
) -> HTMLResponse:
    row = service.get(session, release_id)
    release = service.parsed(row)
    query = search.casefold()
    labels = [
        label
        for label in release.labels
        if not query or query in label.name.casefold() or query in label.key.casefold()
    ]
    shown = labels[offset : offset + PAGE_SIZE]
    keys = {label.key for label in shown}
    sources: dict[str, list[TextSource]] = {}
    for source in release.sources:
        if source.key in keys:
            sources.setdefault(source.key, []).append(source)
    return page(
        request,
        "releases/show.html",
        status=error.status if error else 200,
        error=error,
        given=given or {},
        release=service.view(session, row),
        labels=[(label, texts_of(label), sources.get(label.key, ())) for label in shown],
        total=len(labels),
        first=offset,
        size=PAGE_SIZE,
        search=search,
        origins=_origins(release),
        jobs=job_service.listing(session, release_id=release_id, limit=MAX_JOBS),
        others=[
            release for release in service.listing(session, limit=1000) if release.id != release_id
        ],
    )


def texts_of(label: ReleaseLabel) -> list[tuple[str, str]]:
    """The texts of a label as (field, text)."""
    texts = [("description", label.description)] if label.description else []
    if label.attributes:
        attributes = (f"{name}: {', '.join(values)}" for name, values in label.attributes.items())
        texts.append(("attributes", "; ".join(attributes)))
    texts += [("sentence", text) for text in label.sentences]
    texts += [("caption", text) for text in label.captions]
    if label.look_alikes:
        texts.append(("look-alikes", "; ".join(label.look_alikes)))
    return [(field, text or "") for field, text in texts]


def _origins(release: Release) -> list[tuple[str, int]]:
    """The sources of the texts with the number of their texts, most frequent first."""
    counted = Counter(
        f"{source.prompt} {source.prompt_version}, {source.resolved_model or source.source}"
        if source.source in ("model", "replay")
        else {"person": "written by people", "import": "imported"}.get(source.source, source.source)
        for source in release.sources
    )
    return counted.most_common()


@router.get("/releases/{release_id}/texts.csv")
def download_release(release_id: Id, session: ReadSession) -> Response:
    """All texts of a release as CSV, one per line."""
    release = service.parsed(service.get(session, release_id))
    rows = (
        (label.key, label.name, label.context or "", field, text)
        for label in release.labels
        for field, text in texts_of(label) or [("", "")]
    )
    columns = ("key", "name", "context", "field", "text")
    return csv_file(f"release-{release_id}.csv", columns, rows)


@router.get("/releases/{release_id}/diff", response_class=HTMLResponse)
def compare_releases(
    request: Request,
    release_id: Id,
    session: ReadSession,
    to: Annotated[int, Query(ge=1, le=MAX_ID)],
    offset: Offset = 0,
) -> HTMLResponse:
    """The labels whose texts differ between two releases, side by side."""
    diff = service.diff(session, release_id, to, limit=CHANGES_PER_PAGE, offset=offset)
    return page(
        request,
        "releases/diff.html",
        diff=diff,
        changes=[(change, _changed(change)) for change in diff.changed],
        first=offset,
        size=CHANGES_PER_PAGE,
    )


def _changed(change: LabelChange) -> list[tuple[str, list[DiffRow]]]:
    """The diffs of the changed fields."""
    before, after = change.before or {}, change.after or {}
    rows = []
    for field in dict.fromkeys([*before, *after]):
        a, b = _lines(before.get(field)), _lines(after.get(field))
        if a != b:
            rows.append((field, side_by_side(a, b)))
    return rows


def _lines(value: Any) -> list[str]:  # noqa: ANN401 - a field of a label, as JSON has it
    if isinstance(value, dict):
        return [f"{name}: {', '.join(map(str, values))}" for name, values in value.items()]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value or "")]
