"""API schema of exports and imports."""

from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from contract import Release
from enrich_service.core.storage.database import utcnow
from enrich_service.generations.models import GenerationSource, GenerationStatus, ReviewAction
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts.schemas import PromptKind, VersionCreate

FORMAT: Final = 1  # version of the records below; increased when the meaning of one changes


class Header(BaseModel):
    """The first line: the kind of file and the version of its records."""

    record: Literal["enrich-export"] = "enrich-export"
    format: Literal[1] = FORMAT


class LabelSetRecord(BaseModel):
    """A label set with all its labels."""

    record: Literal["label_set"] = "label_set"
    name: str
    labels: list[LabelIn]
    confusable: dict[str, list[str]] = {}


class VersionRecord(VersionCreate):
    """A prompt version, with its prompt."""

    record: Literal["prompt_version"] = "prompt_version"
    prompt: str
    kind: PromptKind
    summary: str = ""
    tags: list[str] = Field(default_factory=list)
    number: int
    content_hash: str
    created_at: AwareDatetime


class ArchivedRecord(BaseModel):
    """A prompt that is archived."""

    record: Literal["archived"] = "archived"
    prompt: str
    at: AwareDatetime


class MoveRecord(BaseModel):
    """One move of an alias, in order; `version` is a version number in the file."""

    record: Literal["alias_move"] = "alias_move"
    prompt: str
    name: str
    version: int
    reason: str
    author: str
    at: AwareDatetime


class AliasRecord(BaseModel):
    """An alias and its current version."""

    record: Literal["alias"] = "alias"
    prompt: str
    name: str
    content_hash: str
    protected: bool


class GenerationRecord(BaseModel):
    """A generation with its provenance.

    `id` and `parent_id` are ids in the file; `label_set`, `label_key` and `prompt_hash` replace
    the ids of the database. The other fields are columns of the table (GENERATION_FIELDS). A new
    column must be added here to be exported.
    """

    model_config = ConfigDict(extra="forbid")

    record: Literal["generation"] = "generation"
    id: int
    parent_id: int | None = None
    label_set: str | None = None
    label_key: str | None = None
    prompt_hash: str | None = None
    source: GenerationSource
    status: GenerationStatus
    kind: str
    label_name: str
    label_context: str | None = None
    image: str | None = None
    image_hash: str | None = None
    dedupe_key: str | None = None
    sample_index: int = 0
    attempt: int = 1
    calls: int = 1
    provider: str | None = None
    requested_model: str | None = None
    resolved_model: str | None = None
    fingerprint: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    response_format: str | None = None
    raw_reply: str | None = None
    parsed: dict[str, Any] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    author: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    variables: dict[str, Any] = Field(default_factory=dict)
    messages: list[dict[str, Any]] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    flags: list[str] = Field(default_factory=list)
    created_at: AwareDatetime = Field(default_factory=utcnow)


# The fields that are columns of the table.
GENERATION_FIELDS = tuple(
    name
    for name in GenerationRecord.model_fields
    if name not in ("record", "id", "parent_id", "label_set", "label_key", "prompt_hash")
)


class ReviewRecord(BaseModel):
    """A review of a text; `generation` is its id in the file."""

    record: Literal["review"] = "review"
    generation: int
    action: ReviewAction
    reason: str
    author: str
    at: AwareDatetime


class ReleaseRecord(BaseModel):
    """A complete release."""

    record: Literal["release"] = "release"
    release: Release


class Imported(BaseModel):
    """The records that an import added; existing ones are only counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label_sets": ["ducks"],
                    "prompt_versions": ["visual-description 1"],
                    "generations": 198,
                    "rejected": 2,
                    "releases": ["ducks-1"],
                    "existing": 0,
                    "problems": ["'yurt': empty: the reply holds no text"],
                }
            ]
        }
    )

    label_sets: list[str] = []
    prompt_versions: list[str] = []
    generations: Annotated[int, Field(description="Accepted texts")] = 0
    rejected: Annotated[int, Field(description="Texts stored as rejected")] = 0
    releases: list[str] = []
    existing: int = 0
    problems: Annotated[list[str], Field(description="The first 100 reasons of rejection")] = []


class ModelUse(BaseModel):
    """Number of texts of a release by model; `resolved` is the name the server reported."""

    requested: str
    resolved: str | None
    texts: int


class Manifest(BaseModel):
    """The provenance of a release's texts, with everything needed to reproduce them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "release": "ducks-1",
                    "hash": "4be2" * 16,
                    "label_set": "ducks",
                    "labels": 200,
                    "message": "First texts",
                    "author": "ada",
                    "created_at": "2026-01-02T03:04:05Z",
                    "texts": {"description by model": 198, "description by person": 2},
                    "models": [
                        {
                            "requested": "gpt-4o-mini",
                            "resolved": "gpt-4o-mini-2024-07-18",
                            "texts": 198,
                        }
                    ],
                    "prompts": [],
                    "service_version": "0.1.0",
                    "files": {},
                }
            ]
        }
    )

    release: str
    hash: str
    label_set: str
    labels: int
    message: str
    author: str
    created_at: AwareDatetime
    texts: Annotated[dict[str, int], Field(description="Number of texts by field and source")]
    models: list[ModelUse]
    prompts: Annotated[list[VersionRecord], Field(description="Prompt versions that were used")]
    service_version: str
    files: Annotated[dict[str, str], Field(description="SHA-256 of each exported file")] = Field(
        default_factory=dict
    )
