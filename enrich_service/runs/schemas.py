"""Descriptions, runs and generations as they cross the wire."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from enrich_service.core.money import Dollars
from enrich_service.generations.models import (
    GenerationSource,
    GenerationStatus,
    ReviewAction,
    RunMode,
    RunState,
)
from enrich_service.prompts.schemas import PromptKind
from enrich_service.validation.rules import ENGLISH

_TEXT = "The harlequin duck has slate-blue plumage, chestnut flanks and bold white stripes."
_WHEN = "2026-01-02T03:04:05Z"
_GENERATION: dict[str, Any] = {
    "id": 17,
    "label": "harlequin duck",
    "context": "a bird",
    "label_id": 4,
    "image": None,
    "kind": "description",
    "text": _TEXT,
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
    "created_at": _WHEN,
}


class Choice(BaseModel):
    """Which prompt version is asked of which model, and how."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(description="Name of the prompt")] = "visual-description"
    version: Annotated[int | None, Field(ge=1, description="Number of its version")] = None
    alias: Annotated[
        str | None,
        Field(description="Or an alias of it; by neither: `production`, else the newest version"),
    ] = None
    model: Annotated[
        str | None, Field(min_length=1, max_length=200, description="Default: ENRICH_LLM_MODEL")
    ] = None
    parameters: Annotated[
        dict[str, JsonValue],
        Field(description="Parameters of the call, on top of the prompt's own: temperature, …"),
    ] = {}
    n: Annotated[
        int, Field(ge=1, le=100, description="Sentences or captions an answer, if the prompt asks")
    ] = 1
    language: Annotated[
        str, Field(max_length=50, description="Language of the answer, if the prompt asks")
    ] = ENGLISH


class NamedLabel(BaseModel):
    """A class name, and what kind of thing it is."""

    model_config = ConfigDict(extra="forbid")

    name: str
    context: str | None = None
    confusable: Annotated[
        list[str],
        Field(max_length=20, description="Names it is easily taken for: `labels` in a prompt"),
    ] = []


class DescribeRequest(Choice):
    """Class names to be described now."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"labels": ["surf scoter", {"name": "harlequin duck", "context": "a bird"}]},
                {"labels": ["surf scoter"], "prompt": "attributes", "model": "gpt-4o-mini"},
                {"labels": ["surf scoter"], "prompt": "my-sentences", "n": 5, "language": "German"},
            ]
        },
    )

    labels: Annotated[list[str | NamedLabel], Field(min_length=1, max_length=100)]
    refresh: Annotated[
        StrictBool, Field(description="Ask for a new sample, though there is an answer already")
    ] = False


class Described(BaseModel):
    """The texts of one class. `status`: accepted, rejected (answers were bad), failed (none)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label": "harlequin duck",
                    "context": "a bird",
                    "text": _TEXT,
                    "texts": [_TEXT],
                    "attributes": {},
                    "status": "accepted",
                    "cached": False,
                    "problems": [],
                    "flags": [],
                    "generation_id": 17,
                    "prompt": "visual-description",
                    "prompt_version": 1,
                    "source": "model",
                    "provider": "https://api.openai.com",
                    "model": "gpt-4o-mini",
                    "cost_usd": 0.000021,
                }
            ]
        }
    )

    label: str
    context: str | None
    text: Annotated[str | None, Field(description="The first text, or all attributes in a line")]
    texts: list[str]
    attributes: dict[str, list[str]]
    status: GenerationStatus
    cached: Annotated[bool, Field(description="Nothing was asked: the answer was there")]
    problems: Annotated[list[str], Field(description="Why it was not accepted")]
    flags: Annotated[list[str], Field(description="Accepted, but worth a look")]
    generation_id: int | None
    prompt: str
    prompt_version: int
    source: GenerationSource
    provider: str | None
    model: str | None
    cost_usd: Dollars | None


class RunCreate(Choice):
    """The enrichment of a whole label set, in the background."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"label_set": "ducks"},
                {
                    "label_set": "ducks",
                    "prompt": "attributes",
                    "alias": "production",
                    "model": "gpt-4o-mini",
                    "samples": 1,
                    "concurrency": 16,
                    "budget_usd": 2.5,
                    "author": "ada",
                },
            ]
        },
    )

    label_set: str
    images: Annotated[
        str | None,
        Field(
            max_length=4096,
            description="Folder with a folder of images for each label, named by its key, on the "
            "service's machine below ENRICH_IMAGE_ROOTS; for prompts of the kind image_caption",
        ),
    ] = None
    mode: Annotated[
        RunMode,
        Field(
            description="batch: by files of questions that the provider answers within a day, for "
            "half the price (OpenAI's Batch API)"
        ),
    ] = RunMode.LIVE
    samples: Annotated[
        int, Field(ge=1, le=100, description="Generations for each label or image")
    ] = 1
    concurrency: Annotated[int, Field(ge=1, le=1000, description="Calls at one time")] = 16
    budget_usd: Annotated[float | None, Field(gt=0, description="Pause when this is spent")] = None
    budget_tokens: Annotated[int | None, Field(gt=0, description="Pause when these are used")] = (
        None
    )
    author: Annotated[str, Field(max_length=200)] = ""


class RunResume(BaseModel):
    """Go on, if wanted with another budget."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"budget_usd": 5.0}]})

    budget_usd: Annotated[float | None, Field(gt=0)] = None
    budget_tokens: Annotated[int | None, Field(gt=0)] = None


class BatchView(BaseModel):
    """A file of questions of a run in the mode batch, and how far the provider is with it."""

    id: int
    remote_id: Annotated[str | None, Field(description="The batch's id at the provider")]
    status: Annotated[str, Field(description="As the provider says; 'preparing' before that")]
    requests: int
    completed: Annotated[int, Field(description="As the provider counts")]
    failed: Annotated[int, Field(description="As the provider counts")]
    error: Annotated[str | None, Field(description="Why it came to nothing, or waits")]
    created_at: datetime
    ended_at: Annotated[datetime | None, Field(description="When its answers were taken in")]


class RunView(BaseModel):
    """A run and how far it is. `done` = cached + accepted + rejected + failed, out of `total`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 3,
                    "label_set": "ducks",
                    "prompt": "visual-description",
                    "prompt_version": 1,
                    "model": "gpt-4o-mini",
                    "parameters": {"temperature": 0.2},
                    "variables": {"language": "German"},
                    "images": None,
                    "mode": "live",
                    "batches": [],
                    "samples": 1,
                    "concurrency": 16,
                    "budget_usd": 2.5,
                    "budget_tokens": None,
                    "state": "running",
                    "error": None,
                    "total": 200,
                    "done": 120,
                    "cached": 20,
                    "accepted": 98,
                    "rejected": 2,
                    "failed": 0,
                    "parked": 0,
                    "elsewhere": 0,
                    "calls": 105,
                    "prompt_tokens": 15000,
                    "completion_tokens": 4200,
                    "cost_usd": 0.0048,
                    "problems": {"refusal": 3},
                    "flags": {"length": 12},
                    "rate": 9.6,
                    "author": "ada",
                    "created_at": _WHEN,
                    "started_at": _WHEN,
                    "finished_at": None,
                }
            ]
        }
    )

    id: int
    label_set: str
    prompt: str
    prompt_version: int
    model: str
    parameters: dict[str, JsonValue]
    variables: dict[str, JsonValue]
    images: Annotated[str | None, Field(description="Folder of the images that are asked about")]
    mode: RunMode
    batches: Annotated[list[BatchView], Field(description="Where the mode is batch")]
    samples: int
    concurrency: int
    budget_usd: float | None
    budget_tokens: int | None
    state: RunState
    error: Annotated[str | None, Field(description="Why it ended or paused before its end")]
    total: Annotated[int, Field(description="Labels, or images, × samples")]
    done: int
    cached: Annotated[int, Field(description="Had an answer already; nothing was paid")]
    accepted: int
    rejected: Annotated[int, Field(description="Every answer was bad")]
    failed: Annotated[int, Field(description="Got no answer; a retry asks again")]
    parked: Annotated[int, Field(description="Put off, since the server asked for it")]
    elsewhere: Annotated[int, Field(description="Waits for what another run is asking")]
    calls: Annotated[int, Field(description="Requests sent, repeated ones included")]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Annotated[Dollars | None, Field(description="None without a price (ENRICH_PRICES)")]
    problems: Annotated[dict[str, int], Field(description="Answers that broke a rule, by rule")]
    flags: Annotated[dict[str, int], Field(description="Answers that a rule flagged, by rule")]
    rate: Annotated[float | None, Field(description="Labels a second, lately")]
    author: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunEstimate(BaseModel):
    """What a run would ask and cost, before it starts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "total": 200,
                    "cached": 20,
                    "to_ask": 180,
                    "prompt_tokens": 27000,
                    "completion_tokens": 7200,
                    "cost_usd": 0.0084,
                    "basis": "the mean of 100 earlier answers",
                }
            ]
        }
    )

    total: int
    cached: int
    to_ask: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Annotated[Dollars | None, Field(description="None without a price (ENRICH_PRICES)")]
    basis: Annotated[str, Field(description="Where the numbers of tokens come from")]


class TextIn(BaseModel):
    """A person's own text. Give `text` (descriptions; one a line for sentences) or `parsed`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": _TEXT, "author": "ada"},
                {"parsed": {"shape": "stocky", "colours": ["slate blue"]}, "author": "ada"},
            ]
        },
    )

    text: Annotated[str | None, Field(min_length=1, max_length=20_000)] = None
    parsed: dict[str, JsonValue] | None = None
    author: Annotated[str, Field(max_length=200)] = ""


class LabelTextIn(TextIn):
    """A person's own text for a label, to stand where `prompt` would have filled it in."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "visual-description", "text": _TEXT, "author": "ada"}]
        },
    )

    prompt: str = "visual-description"
    language: Annotated[str, Field(max_length=50, description="Language of the text")] = ENGLISH


class GenerationView(BaseModel):
    """One generation without its bulky parts."""

    model_config = ConfigDict(json_schema_extra={"examples": [_GENERATION]})

    id: int
    label: str
    context: str | None
    label_id: int | None
    image: Annotated[str | None, Field(description="CLASS/FILE that it is a caption of")]
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
    approved: Annotated[bool | None, Field(description="False: rejected; null: nobody said")]
    locked: Annotated[bool, Field(description="It wins, and cannot be edited")]
    author: str
    created_at: datetime


class Opinion(StrEnum):
    """What people think of a text; `open`: nobody said."""

    APPROVED = "approved"
    REJECTED = "rejected"
    LOCKED = "locked"
    OPEN = "open"


class ReviewIn(BaseModel):
    """What a person says of texts."""

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
    """One entry of the log of a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 1,
                    "generation_id": 17,
                    "action": "approve",
                    "reason": "as in the field guide",
                    "author": "ada",
                    "at": _WHEN,
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
    """Generations, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_GENERATION], "next_before": None}]}
    )

    items: list[GenerationView]
    next_before: Annotated[
        int | None, Field(description="Value of `before` for the next page; None: this is the last")
    ]


class GenerationDetail(GenerationView):
    """One generation with everything that is known of how it came about."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_GENERATION,
                    "texts": [_TEXT],
                    "attributes": {},
                    "parsed": {"description": _TEXT},
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
