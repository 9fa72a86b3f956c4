"""API schema of label sets."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_DUCK: dict[str, Any] = {"key": "n01847000", "name": "harlequin duck", "context": "a bird species"}
_SET: dict[str, Any] = {"name": "ducks", "labels": 2, "created_at": "2026-01-02T03:04:05Z"}


class LabelIn(BaseModel):
    """A class. The key defaults to the name with underscores instead of spaces."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_DUCK]})

    key: Annotated[str | None, Field(description="Folder name of the class, e.g. a wnid")] = None
    name: Annotated[str, Field(description="Human-readable class name")]
    context: Annotated[str | None, Field(description="Kind of object, e.g. 'a bird'")] = None


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
    """A label set; `labels` is the number of labels."""

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
        list[str],
        Field(description="Keys of the labels it is most easily confused with, most similar first"),
    ] = []


class LabelPage(BaseModel):
    """One page of labels; `next_offset` is the `offset` of the next page, null on the last."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"id": 1, **_DUCK}], "total": 2, "next_offset": 1}]
        }
    )

    items: list[LabelView]
    total: int
    next_offset: int | None


class Confusable(BaseModel):
    """Label key → keys of the labels it is easily confused with, most similar first."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"confusable": {"mallard": ["teal", "gadwall"]}}]},
    )

    confusable: dict[str, list[str]]
