"""Descriptions and runs in the API."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from enrich_service.core.money import Dollars
from enrich_service.generations.models import GenerationSource, GenerationStatus, RunMode, RunState
from enrich_service.generations.schemas import EXAMPLE_TEXT, EXAMPLE_TIME
from enrich_service.prompts.schemas import DEFAULT_PROMPT
from enrich_service.validation.answer import ENGLISH


class Choice(BaseModel):
    """The prompt version, model and parameters of requests."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(description="Name of the prompt")] = DEFAULT_PROMPT
    version: Annotated[int | None, Field(ge=1, description="Version number")] = None
    alias: Annotated[
        str | None,
        Field(description="Version alias. Default: `production`, or the newest version"),
    ] = None
    model: Annotated[
        str | None, Field(min_length=1, max_length=200, description="Default: ENRICH_LLM_MODEL")
    ] = None
    parameters: Annotated[
        dict[str, JsonValue],
        Field(description="Overrides of the prompt's parameters, e.g. temperature"),
    ] = {}
    n: Annotated[
        int,
        Field(ge=1, le=100, description="Sentences or captions per answer, if the prompt uses `n`"),
    ] = 1
    language: Annotated[
        str,
        Field(max_length=50, description="Language of the answer, if the prompt uses `language`"),
    ] = ENGLISH


class NamedLabel(BaseModel):
    """A class name with its context."""

    model_config = ConfigDict(extra="forbid")

    name: str
    context: str | None = None
    confusable: Annotated[
        list[str],
        Field(max_length=20, description="Names of easily confused labels: `labels` in a prompt"),
    ] = []


class DescribeRequest(Choice):
    """Class names to describe now."""

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
        StrictBool, Field(description="Request a new sample even if there is an answer")
    ] = False


class Described(BaseModel):
    """The texts of one class. `status`: accepted, rejected or failed (no answer)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label": "harlequin duck",
                    "context": "a bird",
                    "text": EXAMPLE_TEXT,
                    "texts": [EXAMPLE_TEXT],
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
    text: Annotated[str | None, Field(description="The first text, or all attributes on one line")]
    texts: list[str]
    attributes: dict[str, list[str]]
    status: GenerationStatus
    cached: Annotated[bool, Field(description="Whether a stored answer was reused at no cost")]
    problems: Annotated[list[str], Field(description="Why the answer was not accepted")]
    flags: Annotated[list[str], Field(description="Warnings about an accepted answer")]
    generation_id: int | None
    prompt: str
    prompt_version: int
    source: GenerationSource
    provider: str | None
    model: str | None
    cost_usd: Dollars | None


class RunCreate(Choice):
    """A background run over a whole label set."""

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
            description="Folder with a folder of images per label, named by its key, on the "
            "service's machine in one of ENRICH_IMAGE_ROOTS; for prompts of the kind image_caption",
        ),
    ] = None
    mode: Annotated[
        RunMode,
        Field(
            description="batch: files of requests that the provider answers within a day, at "
            "half the price (OpenAI's Batch API)"
        ),
    ] = RunMode.LIVE
    samples: Annotated[int, Field(ge=1, le=100, description="Generations per label or image")] = 1
    concurrency: Annotated[int, Field(ge=1, le=1000, description="Concurrent calls")] = 16
    budget_usd: Annotated[float | None, Field(gt=0, description="Pause at this cost")] = None
    budget_tokens: Annotated[
        int | None, Field(gt=0, description="Pause at this number of tokens")
    ] = None
    author: Annotated[str, Field(max_length=200)] = ""


class RunResume(BaseModel):
    """A run to resume, optionally with another budget."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"budget_usd": 5.0}]})

    budget_usd: Annotated[float | None, Field(gt=0)] = None
    budget_tokens: Annotated[int | None, Field(gt=0)] = None


class BatchView(BaseModel):
    """A batch of requests of a run, and its progress at the provider."""

    id: int
    remote_id: Annotated[str | None, Field(description="The batch's id at the provider")]
    status: Annotated[
        str, Field(description="Status at the provider; 'preparing' before it is sent")
    ]
    requests: int
    completed: Annotated[int, Field(description="Answered requests, as counted by the provider")]
    failed: Annotated[int, Field(description="Failed requests, as counted by the provider")]
    error: Annotated[str | None, Field(description="Why it failed, or why it is retried later")]
    created_at: datetime
    ended_at: Annotated[datetime | None, Field(description="When its answers were stored")]


class RunView(BaseModel):
    """A run and its progress. `done` = cached + accepted + rejected + failed, out of `total`."""

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
                    "waiting_on_other_runs": 0,
                    "calls": 105,
                    "prompt_tokens": 15000,
                    "completion_tokens": 4200,
                    "cost_usd": 0.0048,
                    "problems": {"refusal": 3},
                    "flags": {"length": 12},
                    "rate": 9.6,
                    "author": "ada",
                    "created_at": EXAMPLE_TIME,
                    "started_at": EXAMPLE_TIME,
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
    images: Annotated[str | None, Field(description="Folder of the images")]
    mode: RunMode
    batches: Annotated[list[BatchView], Field(description="For the mode batch")]
    samples: int
    concurrency: int
    budget_usd: float | None
    budget_tokens: int | None
    state: RunState
    error: Annotated[str | None, Field(description="Why it failed or paused")]
    total: Annotated[int, Field(description="Labels, or images, × samples")]
    done: int
    cached: Annotated[int, Field(description="Labels with a stored answer, at no cost")]
    accepted: int
    rejected: Annotated[int, Field(description="Labels whose answers were all rejected")]
    failed: Annotated[
        int, Field(description="Labels without an answer; a retry requests them again")
    ]
    parked: Annotated[
        int, Field(description="Rate-limited labels, which are requested again later")
    ]
    waiting_on_other_runs: Annotated[
        int, Field(description="Labels that another run or request is requesting")
    ]
    calls: Annotated[int, Field(description="Requests sent, including retries")]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Annotated[
        Dollars | None, Field(description="Null if the price is unknown (ENRICH_PRICES)")
    ]
    problems: Annotated[dict[str, int], Field(description="Answers that broke a rule, by rule")]
    flags: Annotated[dict[str, int], Field(description="Answers that a rule flagged, by rule")]
    rate: Annotated[float | None, Field(description="Labels per second, over the last 200")]
    author: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunEstimate(BaseModel):
    """The calls, tokens and dollars of a run, before it starts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "total": 200,
                    "cached": 20,
                    "new_requests": 180,
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
    new_requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Annotated[
        Dollars | None, Field(description="Null if the price is unknown (ENRICH_PRICES)")
    ]
    basis: Annotated[str, Field(description="Basis of the estimated numbers of tokens")]
