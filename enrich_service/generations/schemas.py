"""Generations, edits and reviews in the API."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from enrich_service.core.money import Dollars
from enrich_service.generations.models import GenerationSource, GenerationStatus, ReviewAction
from enrich_service.prompts.schemas import DEFAULT_PROMPT, PromptKind
from enrich_service.validation.answer import ENGLISH

EXAMPLE_TEXT = "The harlequin duck has slate-blue plumage, chestnut flanks and bold white stripes."
EXAMPLE_TIME = "2026-01-02T03:04:05Z"
_GENERATION: dict[str, Any] = {
    "id": 17,
    "label": "harlequin duck",
    "context": "a bird",
    "label_id": 4,
    "image": None,
    "kind": "description",
    "text": EXAMPLE_TEXT,
    "status": "accepted",
    "source": "model",
    "run_id": 3,
    "prompt": "visual-description",
    "prompt_version": 1,
    "model": "gpt-4o-mini",
    "sample_index": 0,
    "attempt": 1,
    "parent_id": None,
    "problems": [],
    "flags": [],
    "approved": True,
    "locked": False,
    "author": "",
    "created_at": EXAMPLE_TIME,
}


class TextIn(BaseModel):
    """A person's text. Give `text` (descriptions; one per line for sentences) or `parsed`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": EXAMPLE_TEXT, "author": "ada"},
                {"parsed": {"shape": "stocky", "colours": ["slate blue"]}, "author": "ada"},
            ]
        },
    )

    text: Annotated[str | None, Field(min_length=1, max_length=20_000)] = None
    parsed: dict[str, JsonValue] | None = None
    author: Annotated[str, Field(max_length=200)] = ""


class LabelTextIn(TextIn):
    """A person's text for a label, which replaces the answer to `prompt`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "visual-description", "text": EXAMPLE_TEXT, "author": "ada"}]
        },
    )

    prompt: str = DEFAULT_PROMPT
    language: Annotated[str, Field(max_length=50, description="Language of the text")] = ENGLISH


class GenerationView(BaseModel):
    """One generation without its messages and raw reply."""

    model_config = ConfigDict(json_schema_extra={"examples": [_GENERATION]})

    id: int
    label: str
    context: str | None
    label_id: int | None
    image: Annotated[str | None, Field(description="The image of a caption, as CLASS/FILE")]
    kind: PromptKind
    text: str | None
    status: GenerationStatus
    source: GenerationSource
    run_id: int | None
    prompt: str | None
    prompt_version: int | None
    model: str | None
    sample_index: int
    attempt: int
    parent_id: int | None
    problems: list[str]
    flags: list[str]
    approved: Annotated[bool | None, Field(description="False: rejected; null: not reviewed")]
    locked: Annotated[
        bool, Field(description="Takes precedence over newer texts and cannot be edited")
    ]
    author: str
    created_at: datetime


class Opinion(StrEnum):
    """The review state of a text; `open`: not reviewed."""

    APPROVED = "approved"
    REJECTED = "rejected"
    LOCKED = "locked"
    OPEN = "open"


class ReviewIn(BaseModel):
    """A review of texts."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"generations": [17, 18], "action": "approve", "author": "ada"}]
        },
    )

    generations: Annotated[
        list[Annotated[int, Field(ge=1, le=2**31 - 1)]], Field(min_length=1, max_length=1000)
    ]
    action: ReviewAction
    reason: str = ""
    author: str = ""


class ReviewView(BaseModel):
    """One entry of the review log of a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 1,
                    "generation_id": 17,
                    "action": "approve",
                    "reason": "as in the field guide",
                    "author": "ada",
                    "at": EXAMPLE_TIME,
                }
            ]
        }
    )

    id: int
    generation_id: int
    action: ReviewAction
    reason: str
    author: str
    at: datetime


class GenerationPage(BaseModel):
    """Generations, newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_GENERATION], "next_before": None}]}
    )

    items: list[GenerationView]
    next_before: Annotated[
        int | None, Field(description="Value of `before` for the next page; null on the last page")
    ]


MAX_ID = 2**31 - 1  # of an integer column


class GenerationFilter(BaseModel):
    """Filters of the list of generations; all that are set must match."""

    label: Annotated[str | None, Field(description="Exact name of the label")] = None
    label_id: Annotated[int | None, Field(ge=1, le=MAX_ID)] = None
    run_id: Annotated[int | None, Field(ge=1, le=MAX_ID)] = None
    prompt: str | None = None
    version: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Of `prompt`")] = None
    status: GenerationStatus | None = None
    source: GenerationSource | None = None
    flagged: Annotated[
        bool | None, Field(description="Only texts with flags (true) or without (false)")
    ] = None
    opinion: Annotated[Opinion | None, Field(description="Review state")] = None
    before: Annotated[
        int | None, Field(ge=1, le=MAX_ID, description="Only ids below this one, for the next page")
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class GenerationDetail(GenerationView):
    """One generation with its full provenance."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_GENERATION,
                    "texts": [EXAMPLE_TEXT],
                    "attributes": {},
                    "parsed": {"description": EXAMPLE_TEXT},
                    "raw_reply": '{"description": "The harlequin duck …"}',
                    "image_hash": None,
                    "prompt_hash": "0c" * 32,
                    "dedupe_key": "1d" * 32,
                    "provider": "https://api.openai.com",
                    "resolved_model": "gpt-4o-mini-2024-07-18",
                    "fingerprint": "fp_1",
                    "response_id": "chatcmpl-1",
                    "finish_reason": "stop",
                    "parameters": {"temperature": 0.2},
                    "variables": {},
                    "messages": [{"role": "user", "content": "…"}],
                    "response_format": "json_schema",
                    "calls": 1,
                    "prompt_tokens": 150,
                    "completion_tokens": 40,
                    "cost_usd": 0.000021,
                    "latency_ms": 812.5,
                }
            ]
        }
    )

    texts: list[str]
    attributes: dict[str, list[str]]
    parsed: dict[str, Any] | None
    raw_reply: str | None
    image_hash: Annotated[str | None, Field(description="SHA-256 of the image's bytes")]
    prompt_hash: str | None
    dedupe_key: str | None
    provider: str | None
    resolved_model: str | None
    fingerprint: str | None
    response_id: str | None
    finish_reason: str | None
    parameters: dict[str, Any]
    variables: dict[str, Any]
    messages: list[dict[str, Any]]
    response_format: str | None
    calls: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: Dollars | None
    latency_ms: float | None
