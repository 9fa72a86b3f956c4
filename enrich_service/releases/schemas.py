"""Releases as they cross the wire; the body of one is `contract.Release`."""

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
    def _one_of_both(self) -> Self:
        if (self.version is None) == (self.alias is None):
            raise ValueError("name a version or an alias of the prompt, one of both")
        return self


class ReleaseSource(VersionName):
    """A prompt version whose texts are taken; its kind says which field."""

    model: Annotated[
        str | None, Field(description="Only texts asked of this model; absent: of any")
    ] = None


class ReleaseCreate(BaseModel):
    """Which texts to freeze for every label of a label set.

    A locked text always wins, then the text of a person; then come the texts of the prompt
    version, then imported ones. Without sources, only people's and imported texts are taken.
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
            description="Languages of the texts; the first that has one for a label wins. Absent: "
            "the only one there is; a release never mixes languages that it does not name",
        ),
    ] = []
    message: str = ""
    author: str = ""
    allow_missing: Annotated[
        StrictBool,
        Field(description="Labels without text are no error (bare names are a release too)"),
    ] = False
    approved_only: Annotated[
        StrictBool, Field(description="Take only texts that a person approved or locked")
    ] = False


class TranslationCreate(Choice):
    """A run over the texts of a release, such as their translation into another language."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"language": "German", "author": "ada"}]}
    )

    prompt: Annotated[str, Field(description="A prompt that reads {{ texts }}")] = "translation"
    language: Annotated[str, Field(max_length=50, description="Language of the new texts")]
    concurrency: Annotated[int, Field(ge=1, le=1000, description="Calls at one time")] = 16
    budget_usd: Annotated[float | None, Field(gt=0, description="Pause when this is spent")] = None
    budget_tokens: Annotated[int | None, Field(gt=0, description="Pause when these are used")] = (
        None
    )
    author: Annotated[str, Field(max_length=200)] = ""


class ReleaseView(BaseModel):
    """A release without its texts; `labels` is how many it has."""

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
    """A label whose texts differ: the fields that do, before and after."""

    key: str
    name: str
    before: Annotated[dict[str, object] | None, Field(description="Null: the label is new")]
    after: Annotated[dict[str, object] | None, Field(description="Null: the label is gone")]


class ReleaseDiff(BaseModel):
    """What differs between two releases; labels that are equal are only counted."""

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
    differing: Annotated[int, Field(description="Labels that differ, listed here or not")]
    changed: list[LabelChange]
