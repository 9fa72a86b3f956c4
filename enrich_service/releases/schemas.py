"""API schema of releases; the body of a release is `contract.Release`."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from enrich_service.runs.schemas import Choice

_SUMMARY: dict[str, Any] = {
    "id": 1,
    "name": "ducks-1",
    "label_set": "ducks",
    "hash": "4be2" * 16,
    "labels": 2,
    "message": "First texts",
    "author": "ada",
    "created_at": "2026-01-02T03:04:05Z",
}

RELEASE_EXAMPLE: dict[str, Any] = _SUMMARY | {
    "labels": [
        {
            "key": "n01847000",
            "name": "harlequin duck",
            "context": "a bird species",
            "description": "A small slate-blue duck with white bands and chestnut flanks.",
        },
        {"key": "surf_scoter", "name": "surf scoter", "description": "A black sea duck."},
    ],
    "sources": [
        {
            "key": "n01847000",
            "field": "description",
            "source": "model",
            "generation_id": 17,
            "prompt": "visual-description",
            "prompt_version": 1,
            "requested_model": "gpt-4o-mini",
            "resolved_model": "gpt-4o-mini-2024-07-18",
        }
    ],
}


class VersionName(BaseModel):
    """A prompt version, by number or alias."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    version: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None
    alias: str | None = None

    @model_validator(mode="after")
    def _check_version_or_alias(self) -> Self:
        if (self.version is None) == (self.alias is None):
            raise ValueError("give either a version or an alias of the prompt")
        return self


class ReleaseSource(VersionName):
    """A prompt version whose texts are used; its kind determines the field."""

    model: Annotated[
        str | None, Field(description="Only texts of this requested model. Default: any")
    ] = None


class ReleaseCreate(BaseModel):
    """The choice of texts for every label of a label set.

    Order of preference: locked texts, texts written by people, texts of the prompt version,
    imported texts. Without sources, only texts written by people and imported texts are used.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "label_set": "ducks",
                    "name": "ducks-1",
                    "sources": [{"prompt": "visual-description", "alias": "production"}],
                    "message": "First texts",
                    "author": "ada",
                }
            ]
        },
    )

    label_set: str
    name: str
    sources: Annotated[list[ReleaseSource], Field(max_length=20)] = []
    languages: Annotated[
        list[str],
        Field(
            max_length=20,
            description="Languages of the texts in order of preference. Required (409) if the "
            "texts are in several languages",
        ),
    ] = []
    message: str = ""
    author: str = ""
    allow_missing: Annotated[
        StrictBool,
        Field(description="Allow labels without text"),
    ] = False
    approved_only: Annotated[StrictBool, Field(description="Use only approved or locked texts")] = (
        False
    )


class TranslationCreate(Choice):
    """A run over the texts of a release, e.g. a translation."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"language": "German", "author": "ada"}]}
    )

    prompt: Annotated[str, Field(description="Prompt that uses {{ texts }}")] = "translation"
    language: Annotated[str, Field(max_length=50, description="Language of the new texts")]
    concurrency: Annotated[int, Field(ge=1, le=1000, description="Concurrent calls")] = 16
    budget_usd: Annotated[float | None, Field(gt=0, description="Pause at this cost")] = None
    budget_tokens: Annotated[
        int | None, Field(gt=0, description="Pause at this number of tokens")
    ] = None
    author: Annotated[str, Field(max_length=200)] = ""


class ReleaseView(BaseModel):
    """A release without its texts; `labels` is the number of labels."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUMMARY]})

    id: int
    name: str
    label_set: str
    hash: Annotated[str, Field(description="SHA-256 of the texts; the ETag of the release")]
    labels: int
    message: str
    author: str
    created_at: datetime


class LabelChange(BaseModel):
    """A label whose texts differ, with the changed fields before and after."""

    key: str
    name: str
    before: Annotated[dict[str, object] | None, Field(description="Null: the label is new")]
    after: Annotated[dict[str, object] | None, Field(description="Null: the label was removed")]


class ReleaseDiff(BaseModel):
    """The differences between two releases; unchanged labels are only counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "before": _SUMMARY,
                    "after": _SUMMARY | {"id": 2, "name": "ducks-2", "hash": "77af" * 16},
                    "unchanged": 1,
                    "differing": 1,
                    "changed": [
                        {
                            "key": "n01847000",
                            "name": "harlequin duck",
                            "before": {"description": "A small duck."},
                            "after": {"description": "A small slate-blue duck with white bands."},
                        }
                    ],
                }
            ]
        }
    )

    before: ReleaseView
    after: ReleaseView
    unchanged: int
    differing: Annotated[
        int, Field(description="Number of changed labels, including those not listed")
    ]
    changed: list[LabelChange]
