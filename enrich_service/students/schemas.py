"""API schema of students."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_NUMBER = 2**31 - 1  # of a version or job: what the databases can store
_WHEN = "2026-01-02T03:04:05Z"
_FIGURES: dict[str, Any] = {
    "seen": 74.8,
    "unseen": 69.2,
    "joint_harmonic_mean": 61.0,
    "parameters": 11439168,
    "latency_ms": 6.4,
}
_ALIAS: dict[str, Any] = {
    "student": "birds",
    "alias": "production",
    "version": 2,
    "sha256": "9f" * 32,
    "bytes": 52428800,
    "classifier": "/v1/students/birds/versions/2/classifier",
}
_VERSION: dict[str, Any] = {
    "student": "birds",
    "number": 2,
    "aliases": ["production"],
    "job_id": 7,
    "model": "resnet18",
    **_FIGURES,
    "bytes": 52428800,
    "sha256": "9f" * 32,
    "classifier": "/v1/students/birds/versions/2/classifier",
    "message": "Trained on twice as many photos",
    "author": "ada",
    "created_at": _WHEN,
}


def _example(
    example: dict[str, Any], *, extra: Literal["forbid", "ignore"] = "ignore"
) -> ConfigDict:
    schema: dict[str, Any] = {"examples": [example]}
    return ConfigDict(extra=extra, json_schema_extra=schema)


Reason = Annotated[str, Field(min_length=1, description="Reason, recorded in the log")]


class StudentRegister(BaseModel):
    """Register the classifier of a job as the next version; the first one creates the student."""

    model_config = _example(
        {"name": "birds", "job_id": 7, "message": _VERSION["message"], "author": "ada"},
        extra="forbid",
    )

    name: str
    job_id: Annotated[int, Field(ge=1, le=MAX_NUMBER, description="Id of a succeeded job")]
    message: Annotated[str, Field(description="Reason for this version")] = ""
    author: str = ""


class Figures(BaseModel):
    """Figures of a student from the report of its job; null if the report does not have them.

    Accuracies are top-1 in percent, with the texts that the student was trained with.
    """

    seen: Annotated[float | None, Field(description="Accuracy on seen classes")] = None
    unseen: Annotated[float | None, Field(description="Accuracy on unseen classes")] = None
    joint_harmonic_mean: Annotated[
        float | None,
        Field(
            description="Harmonic mean of the accuracies on seen and unseen classes, all competing"
        ),
    ] = None
    parameters: Annotated[int | None, Field(le=2**53)] = None
    latency_ms: Annotated[float | None, Field(description="Time per image on the worker")] = None


class StudentVersionView(Figures):
    """An immutable version of a student."""

    model_config = _example(_VERSION)

    student: str
    number: int
    aliases: Annotated[list[str], Field(description="Aliases that point at this version")]
    job_id: int
    model: Annotated[str, Field(description="Name of the timm model")]
    bytes: Annotated[int, Field(description="Size of classifier.zip")]
    sha256: Annotated[str, Field(description="SHA-256 of classifier.zip")]
    classifier: Annotated[str, Field(description="Path of classifier.zip in this service")]
    message: str
    author: str
    created_at: datetime


class StudentAliasView(BaseModel):
    """An alias, and the classifier that it points at."""

    model_config = _example(_ALIAS)

    student: str
    alias: str
    version: int
    sha256: Annotated[str, Field(description="SHA-256 of classifier.zip")]
    bytes: Annotated[int, Field(description="Size of classifier.zip")]
    classifier: Annotated[str, Field(description="Path of classifier.zip in this service")]


class StudentView(BaseModel):
    """A student with its aliases."""

    model_config = _example(
        {"name": "birds", "latest": 2, "aliases": [_ALIAS], "created_at": _WHEN}
    )

    name: str
    latest: Annotated[int, Field(description="Number of the newest version")]
    aliases: list[StudentAliasView]
    created_at: datetime


class StudentAliasPut(BaseModel):
    """Point an alias at a version. Creates the alias if it does not exist."""

    model_config = _example(
        {"version": 2, "reason": "3 points better on unseen classes", "author": "ada"},
        extra="forbid",
    )

    version: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    reason: Reason
    author: str = ""


class StudentAliasRollback(BaseModel):
    """Roll an alias back to its previous version."""

    model_config = _example({"reason": "slower on phones", "author": "ada"}, extra="forbid")

    reason: Reason
    author: str = ""


class StudentAliasMoveView(BaseModel):
    """One move of an alias."""

    model_config = _example(
        {
            "alias": "production",
            "from_version": 1,
            "to_version": 2,
            "reason": "3 points better on unseen classes",
            "author": "ada",
            "at": _WHEN,
        }
    )

    alias: str
    from_version: int | None
    to_version: int
    reason: str
    author: str
    at: datetime
