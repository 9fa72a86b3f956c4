"""API schema of trials and comparisons."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from contract import ConfusablePair
from enrich_service.core.money import Dollars
from enrich_service.generations.models import GenerationStatus
from enrich_service.prompts.schemas import PromptKind, VersionContent
from enrich_service.releases.schemas import VersionName
from enrich_service.runs.schemas import NamedLabel

_TEXT = "The harlequin duck has slate-blue plumage, chestnut flanks and bold white stripes."
_TRIED: dict[str, Any] = {
    "status": "accepted",
    "cached": False,
    "text": _TEXT,
    "texts": [_TEXT],
    "attributes": {},
    "problems": [],
    "flags": [],
    "raw_reply": '{"description": "The harlequin duck …"}',
    "attempts": 1,
    "prompt_tokens": 150,
    "completion_tokens": 40,
    "cost_usd": 0.000021,
    "latency_ms": 812.5,
}
_TOTALS: dict[str, Any] = {
    "accepted": 1,
    "rejected": 0,
    "failed": 0,
    "prompt_tokens": 150,
    "completion_tokens": 40,
    "cost_usd": 0.000021,
}


class TrialRequest(VersionContent):
    """An unsaved prompt, the labels to test it on, and a version to compare with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "description",
                    "user": "Describe {{ label | tojson }} by its colours. Answer in JSON.",
                    "output_schema": {
                        "type": "object",
                        "properties": {"description": {"type": "string"}},
                        "required": ["description"],
                    },
                    "labels": ["harlequin duck"],
                    "against": {"prompt": "visual-description", "alias": "production"},
                }
            ]
        },
    )

    kind: PromptKind
    labels: Annotated[list[str | NamedLabel], Field(min_length=1, max_length=10)]
    model: Annotated[
        str | None, Field(min_length=1, max_length=200, description="Default: the prompt's model")
    ] = None
    parameters: Annotated[
        dict[str, JsonValue],
        Field(description="Overrides of the prompt's parameters, e.g. temperature"),
    ] = Field(default_factory=dict)
    against: VersionName | None = None


class Tried(BaseModel):
    """The answer of one prompt for one label; tokens and cost include all attempts."""

    status: GenerationStatus
    cached: Annotated[bool, Field(description="Whether a stored answer was reused at no cost")]
    text: str | None
    texts: list[str]
    attributes: dict[str, list[str]]
    problems: list[str]
    flags: list[str]
    raw_reply: str | None
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Annotated[
        Dollars | None, Field(description="Null if the price is unknown (ENRICH_PRICES)")
    ]
    latency_ms: Annotated[float | None, Field(description="Latency of the last attempt")]


class TriedLabel(BaseModel):
    """The answers of the unsaved prompt and the saved version for one label."""

    label: str
    context: str | None
    candidate: Tried
    against: Tried | None


class Totals(BaseModel):
    """The totals of one side."""

    accepted: int
    rejected: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Dollars | None


class Trial(BaseModel):
    """Answers to an unsaved prompt and to a saved version."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "content_hash": "0c" * 32,
                    "model": "gpt-4o-mini",
                    "against_version": 1,
                    "labels": [
                        {
                            "label": "harlequin duck",
                            "context": None,
                            "candidate": _TRIED,
                            "against": _TRIED | {"cached": True},
                        }
                    ],
                    "candidate": _TOTALS,
                    "against": _TOTALS,
                }
            ]
        }
    )

    content_hash: Annotated[str, Field(description="Content hash of the prompt if it were saved")]
    model: str
    against_version: int | None
    labels: list[TriedLabel]
    candidate: Totals
    against: Totals | None


class ComparedText(BaseModel):
    """The stored answers of one version and model for one label."""

    status: GenerationStatus
    generation_ids: list[int]
    text: str | None
    texts: list[str]
    problems: list[str]
    flags: list[str]
    characters: Annotated[int, Field(description="Total characters of all texts")]
    teacher_tokens: Annotated[int, Field(description="Estimated tokens of the longest text")]
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Dollars | None


class ComparedLabel(BaseModel):
    """A label with both texts; null for a side without an answer."""

    key: str
    name: str
    a: ComparedText | None
    b: ComparedText | None


class SideDiagnostics(BaseModel):
    """Similarity of the class texts of one side, as measured by a worker."""

    job_id: int
    release: str
    classes: int
    labels: Annotated[int, Field(description="Number of classes with a text of this side")]
    text: Annotated[str, Field(description="Text strategy")]
    mean_cosine: float
    mean_nearest_cosine: float
    effective_rank: float
    confusable: list[ConfusablePair]


class ComparedSide(BaseModel):
    """Totals of one version (and model) for the label set."""

    prompt: str
    version: int
    content_hash: str
    model: Annotated[str | None, Field(description="Null: any model")]
    accepted: int
    rejected: int
    failed: int
    missing: Annotated[int, Field(description="Labels without a request")]
    mean_characters: float | None
    mean_teacher_tokens: float | None
    too_long: Annotated[int, Field(description="Labels with a text over the teacher's 77 tokens")]
    failures: Annotated[
        dict[str, int], Field(description="Rejected answers by rule, including retried ones")
    ]
    flagged: Annotated[dict[str, int], Field(description="Accepted answers with a flag, by rule")]
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Dollars | None
    mean_latency_ms: float | None
    diagnostics: Annotated[
        SideDiagnostics | None,
        Field(description="From the newest job whose release has texts of this side only"),
    ]


_COMPARED: dict[str, Any] = {
    "status": "accepted",
    "generation_ids": [17],
    "text": _TEXT,
    "texts": [_TEXT],
    "problems": [],
    "flags": [],
    "characters": 82,
    "teacher_tokens": 27,
    "attempts": 1,
    "prompt_tokens": 150,
    "completion_tokens": 40,
    "cost_usd": 0.000021,
}
_SIDE: dict[str, Any] = {
    "prompt": "visual-description",
    "version": 1,
    "content_hash": "0c" * 32,
    "model": None,
    "accepted": 198,
    "rejected": 2,
    "failed": 0,
    "missing": 0,
    "mean_characters": 121.4,
    "mean_teacher_tokens": 33.1,
    "too_long": 3,
    "failures": {"refusal": 2},
    "flagged": {"length": 3},
    "calls": 203,
    "prompt_tokens": 30000,
    "completion_tokens": 8000,
    "cost_usd": 0.0042,
    "mean_latency_ms": 640.0,
    "diagnostics": {
        "job_id": 4,
        "release": "ducks-1",
        "classes": 200,
        "labels": 198,
        "text": "name+description",
        "mean_cosine": 0.41,
        "mean_nearest_cosine": 0.77,
        "effective_rank": 61.2,
        "confusable": [{"a": "teal", "b": "gadwall", "cosine": 0.93}],
    },
}


class Comparison(BaseModel):
    """Comparison of two versions or two models for a label set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label_set": "ducks",
                    "kind": "description",
                    "a": _SIDE,
                    "b": _SIDE | {"version": 2, "diagnostics": None},
                    "labels": [
                        {
                            "key": "n01847000",
                            "name": "harlequin duck",
                            "a": _COMPARED,
                            "b": _COMPARED,
                        }
                    ],
                    "total": 200,
                    "next_offset": 1,
                }
            ]
        }
    )

    label_set: str
    kind: PromptKind
    a: ComparedSide
    b: ComparedSide
    labels: list[ComparedLabel]
    total: int
    next_offset: int | None
