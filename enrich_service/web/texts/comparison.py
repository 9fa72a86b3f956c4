"""The page that compares two prompt versions or models over a label set."""

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
SIZE = 25
AT_ONCE = 1000  # labels up to which the summary is part of the page; else it is loaded later


@dataclass(frozen=True)
class Beside:
    """A label with both texts and their differences."""

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
    sums: bool = False,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> HTMLResponse:
    """The comparison of stored answers of two versions or models."""
    label_set = label_service.view(session, label_service.get(session, name))
    prompts = prompt_service.listing(session, limit=None)
    found: dict[str, Any] = {}
    error: UserError | None = None
    if a and b:
        try:
            sides = parse_source(a, model_a or None), parse_source(b, model_b or None)
            labels, total = comparison.texts(session, name, *sides, limit=SIZE, offset=offset)
            found = {"labels": list(map(_beside, labels)), "total": total}
            if sums or label_set.labels <= AT_ONCE:
                left, right = comparison.sums(session, name, *sides, settings.artifact_dir)
                found |= {"left": left, "right": right, "rows": _rows(left, right)}
        except UserError as refusal:
            error = refusal
    versions = _versions(prompts)
    return page(
        request,
        "labels/comparison.html",
        status=error.status if error else 200,
        label_set=label_set,
        versions=versions,
        given={"a": a or _proposed(prompts), "b": b, "model_a": model_a, "model_b": model_b},
        found=found,
        error=error,
        first=offset,
        size=SIZE,
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


def _proposed(prompts: list[PromptView]) -> str:
    """The default prompt version of runs, if it exists."""
    wanted = Choice.model_fields["prompt"].default
    found = [
        f"{prompt.name}@{alias.version}"
        for prompt in prompts
        for alias in prompt.aliases
        if (prompt.name, alias.name) == (wanted, DEFAULT_ALIAS)
    ]
    return next(iter(found), "")


def _beside(label: ComparedLabel) -> Beside:
    return Beside(label, side_by_side(_lines(label.a), _lines(label.b)))


def _lines(text: ComparedText | None) -> list[str]:
    """The texts of one side, one per line."""
    if text is None or text.text is None:
        return []
    return text.texts if len(text.texts) > 1 else [text.text]


def _rows(a: ComparedSide, b: ComparedSide) -> list[tuple[str, Any, Any]]:
    """The rows of the summary table, with the counts of each rule at the end."""
    rows: list[tuple[str, Any, Any]] = [
        (words, getattr(a, name), getattr(b, name))
        for name, words in {
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
        ("Refused", a.failures, b.failures),
        ("Flagged", a.flagged, b.flagged),
    ):
        rows += [
            (f"{title}: {rule}", left.get(rule, 0), right.get(rule, 0))
            for rule in sorted({*left, *right})
        ]
    return rows
