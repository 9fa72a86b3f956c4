"""The page that compares the texts of two prompt versions or models for a label set."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from enrich_service.core.errors import UserError
from enrich_service.core.rest.dependencies import MAX_ID, ReadSession, SettingsDep
from enrich_service.labels import service as label_service
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.differences import side_by_side
from enrich_service.prompts.schemas import DiffRow, PromptView
from enrich_service.prompts.service import DEFAULT_ALIAS
from enrich_service.releases.choose_texts import parse_source
from enrich_service.runs.schemas import Choice
from enrich_service.trials import comparison
from enrich_service.trials.schemas import ComparedLabel, ComparedSide, ComparedText
from enrich_service.web.page import page

router = APIRouter()
PAGE_SIZE = 25
MAX_INLINE_SUMMARY = 1000  # labels; with more, the summary is loaded after the page


@dataclass(frozen=True)
class LabelComparison:
    """A label with both texts and the rows of their diff."""

    label: ComparedLabel
    rows: list[DiffRow]


@router.get("/label-sets/{name}/comparison", response_class=HTMLResponse)
def compare_texts(
    request: Request,
    name: str,
    session: ReadSession,
    settings: SettingsDep,
    a: Annotated[str, Query(max_length=200)] = "",
    b: Annotated[str, Query(max_length=200)] = "",
    model_a: Annotated[str, Query(max_length=200)] = "",
    model_b: Annotated[str, Query(max_length=200)] = "",
    summary: bool = False,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> HTMLResponse:
    """The comparison of stored answers of two versions or models."""
    label_set = label_service.view(session, label_service.get(session, name))
    prompts = prompt_service.listing(session, limit=None)
    result: dict[str, Any] = {}
    error: UserError | None = None
    if a and b:
        try:
            sides = parse_source(a, model_a or None), parse_source(b, model_b or None)
            labels, total = comparison.texts(session, name, *sides, limit=PAGE_SIZE, offset=offset)
            result = {"labels": list(map(_compare, labels)), "total": total}
            if summary or label_set.labels <= MAX_INLINE_SUMMARY:
                left, right = comparison.summaries(session, name, *sides, settings.artifact_dir)
                result |= {"left": left, "right": right, "rows": _rows(left, right)}
        except UserError as rejection:
            error = rejection
    versions = _versions(prompts)
    return page(
        request,
        "labels/comparison.html",
        status=error.status if error else 200,
        label_set=label_set,
        versions=versions,
        given={"a": a or _default_version(prompts), "b": b, "model_a": model_a, "model_b": model_b},
        result=result,
        error=error,
        first=offset,
        size=PAGE_SIZE,
    )


def _versions(prompts: list[PromptView]) -> list[tuple[str, list[str]]]:
    """Each prompt with its versions as PROMPT@VERSION, newest first."""
    return [
        (
            f"{prompt.name} ({prompt.kind.value})",
            [f"{prompt.name}@{n}" for n in range(prompt.latest, 0, -1)],
        )
        for prompt in prompts
    ]


def _default_version(prompts: list[PromptView]) -> str:
    """The default prompt version of runs; empty if it does not exist."""
    default_prompt = Choice.model_fields["prompt"].default
    versions = [
        f"{prompt.name}@{alias.version}"
        for prompt in prompts
        for alias in prompt.aliases
        if (prompt.name, alias.name) == (default_prompt, DEFAULT_ALIAS)
    ]
    return next(iter(versions), "")


def _compare(label: ComparedLabel) -> LabelComparison:
    return LabelComparison(label, side_by_side(_lines(label.a), _lines(label.b)))


def _lines(text: ComparedText | None) -> list[str]:
    """The texts of one side, one per line."""
    if text is None or text.text is None:
        return []
    return text.texts if len(text.texts) > 1 else [text.text]


def _rows(a: ComparedSide, b: ComparedSide) -> list[tuple[str, Any, Any]]:
    """The rows of the summary table, with the counts of each rule at the end."""
    rows: list[tuple[str, Any, Any]] = [
        (title, getattr(a, name), getattr(b, name))
        for name, title in {
            "accepted": "Labels with a text",
            "rejected": "Labels with rejected answers only",
            "failed": "Labels without an answer",
            "missing": "Labels without a request",
            "mean_characters": "Mean characters per text",
            "mean_teacher_tokens": "Mean tokens per text (estimated)",
            "too_long": f"Texts over {comparison.TEACHER_TOKENS} tokens",
            "calls": "Calls",
            "prompt_tokens": "Tokens in",
            "completion_tokens": "Tokens out",
            "mean_latency_ms": "Mean latency (ms)",
        }.items()
    ]
    for title, left, right in (
        ("Rejected", a.failures, b.failures),
        ("Flagged", a.flagged, b.flagged),
    ):
        rows += [
            (f"{title}: {rule}", left.get(rule, 0), right.get(rule, 0))
            for rule in sorted({*left, *right})
        ]
    return rows
