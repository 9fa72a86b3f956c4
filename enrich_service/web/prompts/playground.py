"""The playground: edit a prompt, compare its answers for a few labels with those of a saved
version, and save it as the next version."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlmodel import Session

from enrich_service.core.errors import InvalidInput, UserError
from enrich_service.core.rest.dependencies import MAX_ID, EngineDep, ReadSession, WriteSession
from enrich_service.core.storage.database import reading
from enrich_service.prompts import service
from enrich_service.prompts.differences import side_by_side
from enrich_service.prompts.schemas import DiffRow, VersionCreate
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.routes import EnricherDep
from enrich_service.trials.schemas import TrialRequest, TriedLabel
from enrich_service.trials.try_prompt import try_prompt as run_trial
from enrich_service.web.forms import Form, SentForm, parse_form, redirect
from enrich_service.web.page import page, render
from enrich_service.web.prompts.pages import FIELDS, text_of

router = APIRouter()
# Field that is edited as JSON → its empty value.
JSON_FIELDS = {"output_schema": "{}", "model_defaults": "{}", "validators": "[]"}
_LABELS = "harlequin duck\nsurf scoter"  # initial labels


@dataclass(frozen=True)
class Answer:
    """The state of one label: pending, an error, or both texts with their differences."""

    label: str
    tried: TriedLabel | None = None
    error: str | None = None

    @property
    def rows(self) -> list[DiffRow]:
        """The diff of the texts of the saved version and of the edited prompt."""
        if self.tried is None or self.tried.against is None:
            return []
        return side_by_side([self.tried.against.text or ""], [self.tried.candidate.text or ""])


@router.get("/prompts/{name}/playground", response_class=HTMLResponse)
def show_playground(
    request: Request,
    name: str,
    session: ReadSession,
    version: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> HTMLResponse:
    """The playground with the content of a version."""
    saved = service.resolve(session, name, version=version)
    given = {field: text_of(saved, field) for field in FIELDS}
    return _page(request, session, name, given | {"against": str(saved.number)})


def _page(
    request: Request,
    session: Session,
    name: str,
    given: Mapping[str, str],
    *,
    answers: Sequence[Answer] = (),
    error: UserError | None = None,
) -> HTMLResponse:
    return page(
        request,
        "prompts/playground.html",
        status=error.status if error else 200,
        prompt=service.view(session, service.get(session, name)),
        given={"labels": _LABELS, "against": "", **dict.fromkeys(FIELDS, ""), **given},
        fields=FIELDS,
        json_fields=JSON_FIELDS,
        answers=answers,
        error=error,
    )


@router.post("/prompts/{name}/playground", response_class=HTMLResponse)
async def try_prompt(
    request: Request, name: str, form: SentForm, engine: EngineDep, enricher: EnricherDep
) -> HTMLResponse:
    """The page with all answers, for browsers without scripts."""
    answers: Sequence[Answer] = ()
    error: UserError | None = None
    try:
        async for latest in _run_trials(enricher, await _trial_requests(enricher, name, form)):
            answers = latest
    except UserError as rejection:
        error = rejection

    def build_page() -> HTMLResponse:
        with reading(engine) as session:
            return _page(request, session, name, form, answers=answers, error=error)

    return await asyncio.to_thread(build_page)


@router.post("/prompts/{name}/playground/live", response_class=EventSourceResponse)
async def stream_answers(
    request: Request, name: str, form: SentForm, enricher: EnricherDep
) -> AsyncIterator[ServerSentEvent]:
    """Stream the answers; each event shows all labels, including pending ones."""
    try:
        async for answers in _run_trials(enricher, await _trial_requests(enricher, name, form)):
            text = render(request, "prompts/answers.html", answers=answers, error=None)
            yield ServerSentEvent(raw_data=text)
    except UserError as error:
        text = render(request, "prompts/answers.html", answers=(), error=error)
        yield ServerSentEvent(raw_data=text)


async def _trial_requests(enricher: Enricher, name: str, form: Form) -> list[TrialRequest]:
    """One request per label. Raises InvalidInput if the form is invalid."""
    labels = [line.strip() for line in form.get("labels", "").splitlines() if line.strip()]

    def read_kind() -> str:
        with reading(enricher.engine) as session:
            return service.get(session, name).kind

    content = content_of(form)
    body = parse_form(
        TrialRequest,
        content
        | {"kind": await asyncio.to_thread(read_kind), "labels": labels, "model": form.get("model")}
        | {"against": {"prompt": name, "version": form.get("against")}},
    )
    # In a thread, because compiling the templates takes long.
    await asyncio.to_thread(
        service.check_content, **body.model_dump(include=set(service.CONTENT_FIELDS))
    )
    return [body.model_copy(update={"labels": [label]}) for label in body.labels]


def content_of(form: Form) -> dict[str, Any]:
    """The content of a prompt version. Raises InvalidInput for a field that is not JSON."""
    content: dict[str, Any] = {"system": form.get("system", ""), "user": form.get("user", "")}
    for field in JSON_FIELDS:
        try:
            content[field] = json.loads(form.get(field) or JSON_FIELDS[field])
        except ValueError as error:
            raise InvalidInput(f"{FIELDS[field]}: invalid JSON ({error})") from error
        except RecursionError as error:
            raise InvalidInput(f"{FIELDS[field]}: the JSON is nested too deep") from error
    return content


async def _run_trials(
    enricher: Enricher, requests: Sequence[TrialRequest]
) -> AsyncIterator[Sequence[Answer]]:
    """Run the trials at once; yield the state of all labels, in order, after each answer."""
    answers = [Answer(str(body.labels[0])) for body in requests]
    yield answers

    async def run(index: int) -> tuple[int, Answer]:
        label = answers[index].label
        try:
            trial = await run_trial(enricher, requests[index])
        except UserError as error:
            return index, Answer(label, error=str(error))
        return index, Answer(label, tried=trial.labels[0])

    tasks = [asyncio.create_task(run(index)) for index in range(len(requests))]
    try:
        for task in asyncio.as_completed(tasks):
            index, answer = await task
            answers[index] = answer
            yield answers
    finally:
        for pending in tasks:
            pending.cancel()  # the client has disconnected


@router.post("/prompts/{name}/versions")
def save_version(request: Request, name: str, form: SentForm, session: WriteSession) -> Response:
    """Save the edited prompt as the next version."""
    try:
        with session.begin_nested():
            fields = {key: form[key] for key in ("message", "author") if key in form}
            body = parse_form(VersionCreate, content_of(form) | fields)
            prompt = service.get(session, name)
            version, _ = service.create_version(session, prompt, body)
    except UserError as error:
        return _page(request, session, name, form, error=error)
    return redirect(f"/prompts/{quote(name)}/versions/{version.number}", form)
