"""Label sets as they cross the wire."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_DUCK: dict[str, Any] = {"key": "n01847000", "name": "harlequin duck", "context": "a bird species"}
_SET: dict[str, Any] = {"name": "ducks", "labels": 2, "created_at": "2026-01-02T03:04:05Z"}


class LabelIn(BaseModel):
    """A class. Without a key, the name with underscores for blanks is the key."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_DUCK]})

    key: Annotated[str | None, Field(description="Folder name of the class, e.g. a wnid")] = None
    name: Annotated[str, Field(description="What a person calls it")]
    context: Annotated[str | None, Field(description="What kind of thing, e.g. 'a bird'")] = None


class LabelSetCreate(BaseModel):
    """A new label set with all of its labels, in order."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "ducks",
                    "labels": [_DUCK, {"name": "surf scoter", "context": "a bird species"}],
                }
            ]
        },
    )

    name: str
    labels: list[LabelIn]


class LabelSetView(BaseModel):
    """A label set; `labels` is how many it has."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SET]})

    name: str
    labels: int
    created_at: datetime


class LabelView(BaseModel):
    """One class of a label set."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": 1, **_DUCK}]})

    id: int
    key: str
    name: str
    context: str | None
    confusable: Annotated[
        list[str], Field(description="Keys of the labels it is most easily confused with")
    ] = []


class LabelPage(BaseModel):
    """A stretch of labels in order; ask again with `offset` = `next_offset` until it is null."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"id": 1, **_DUCK}], "total": 2, "next_offset": 1}]
        }
    )

    items: list[LabelView]
    total: int
    next_offset: int | None


class Confusable(BaseModel):
    """For each label (by key) those that it is most easily confused with, the nearest first."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"confusable": {"mallard": ["teal", "gadwall"]}}]},
    )

    confusable: dict[str, list[str]]
