"""Lines of the export, and what an import did."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from contract import Release
from enrich_service.generations.models import Generation, ReviewAction
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts.schemas import PromptKind, VersionCreate


class Header(BaseModel):
    """The first line: what this file is."""

    record: Literal["enrich-export"] = "enrich-export"
    format: Literal[1] = 1


class LabelSetRecord(BaseModel):
    """A label set with all of its labels."""

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
    """A prompt is archived; one that is not has no such line."""

    record: Literal["archived"] = "archived"
    prompt: str
    at: AwareDatetime


class MoveRecord(BaseModel):
    """One move of an alias, the oldest first; `version` is a number in the file."""

    record: Literal["alias_move"] = "alias_move"
    prompt: str
    name: str
    version: int
    reason: str
    author: str
    at: AwareDatetime


class AliasRecord(BaseModel):
    """An alias, as it stood."""

    record: Literal["alias"] = "alias"
    prompt: str
    name: str
    content_hash: str
    protected: bool


class _GenerationBase(BaseModel):
    """A generation with its provenance. Ids are those of the file, only to find parents."""

    model_config = ConfigDict(extra="forbid")

    record: Literal["generation"] = "generation"
    id: int
    parent_id: int | None = None
    label_set: str | None = None
    label_key: str | None = None
    prompt_hash: str | None = None


# Whatever the table records of a generation is carried over; rows are named otherwise there.
_ROW_IDS = {"id", "parent_id", "label_id", "run_id", "prompt_version_id"}
_fields: dict[str, Any] = {
    name: (field.annotation, ... if field.is_required() else field.get_default())
    for name, field in Generation.model_fields.items()
    if name not in _ROW_IDS and field.default_factory is None
} | {
    name: (field.annotation, Field(default_factory=field.default_factory))
    for name, field in Generation.model_fields.items()
    if name not in _ROW_IDS and field.default_factory is not None
}
_fields["created_at"] = (AwareDatetime, _fields["created_at"][1])
GENERATION_FIELDS = tuple(_fields)
GenerationRecord = create_model("GenerationRecord", __base__=_GenerationBase, **_fields)


class ReviewRecord(BaseModel):
    """What a person said of a text; `generation` is its id in the file."""

    record: Literal["review"] = "review"
    generation: int
    action: ReviewAction
    reason: str
    author: str
    at: AwareDatetime


class ReleaseRecord(BaseModel):
    """A release, whole."""

    record: Literal["release"] = "release"
    release: Release


class Imported(BaseModel):
    """What an import added; what was there already is only counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label_sets": ["ducks"],
                    "prompt_versions": ["visual-description 1"],
                    "generations": 198,
                    "rejected": 2,
                    "releases": ["ducks-1"],
                    "there_already": 0,
                    "problems": ["'yurt': empty: the reply holds no text"],
                }
            ]
        }
    )

    label_sets: list[str] = []
    prompt_versions: list[str] = []
    generations: Annotated[int, Field(description="Texts that can be released")] = 0
    rejected: Annotated[int, Field(description="Texts stored as rejected")] = 0
    releases: list[str] = []
    there_already: int = 0
    problems: Annotated[list[str], Field(description="Why texts were rejected, first 100")] = []


class ModelUse(BaseModel):
    """How many texts of a release one model wrote; `resolved` is what the server called itself."""

    requested: str
    resolved: str | None
    texts: int


class Manifest(BaseModel):
    """Where the texts of a release came from, whole enough to make them again."""

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
    texts: Annotated[dict[str, int], Field(description="How many, by field and source")]
    models: list[ModelUse]
    prompts: Annotated[list[VersionRecord], Field(description="Every version that was used, whole")]
    service_version: str
    files: Annotated[
        dict[str, str], Field(description="SHA-256 of each file beside this one, where exported")
    ] = Field(default_factory=dict)
