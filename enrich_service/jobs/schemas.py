"""What jobs and workers say over the wire, beside the models of `contract`."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    field_validator,
)

from contract import EventKind, JobState

MAX_EVENT_BYTES = 100_000
MAX_FENCE = 2**31 - 1
_WHEN = "2026-01-02T03:04:05Z"
_CONFIG: dict[str, Any] = {
    "data": "/data/tiny-imagenet-ood",
    "teacher": "hf-hub:bench/lite0-minilm",
    "student": "resnet18",
    "epochs": 12,
}
JOB_CREATE_EXAMPLE: dict[str, Any] = {"release_id": 1, "config": _CONFIG, "priority": 0}
JOB_EXAMPLE: dict[str, Any] = {
    "id": 1,
    "release_id": 1,
    "release_hash": "4be2" * 16,
    "after_run": None,
    "config": _CONFIG,
    "priority": 0,
    "needs": {"gpu": False, "memory_gb": 0},
    "shrink_batch": False,
    "state": "running",
    "attempts": 1,
    "max_attempts": 3,
    "cancel_requested": False,
    "worker": "gpu-1",
    "lease_expires_at": _WHEN,
    "error": None,
    "created_at": _WHEN,
    "started_at": _WHEN,
    "finished_at": None,
}
LEASE_EXAMPLE: dict[str, Any] = {
    "job": JOB_EXAMPLE | {"state": "leased"},
    "release": {
        "id": 1,
        "name": "ducks-1",
        "label_set": "ducks",
        "hash": "4be2" * 16,
        "created_at": _WHEN,
        "labels": [{"key": "n01847000", "name": "harlequin duck", "description": "A small duck."}],
    },
    "fence": 1,
    "seconds": 60.0,
    "expires_at": _WHEN,
}
REPORT_EXAMPLE: dict[str, Any] = {
    "config": _CONFIG,
    "release_id": 1,
    "release_hash": "4be2" * 16,
    "label_set": "ducks",
    "teacher": "hf-hub:bench/lite0-minilm",
    "teacher_fingerprint": "5c" * 32,
    "teacher_dim": 512,
    "student_parameters": 11439168,
    "epochs": [],
    "accuracies": [
        {
            "model": "student",
            "text": "name+description",
            "split": "unseen",
            "top1": 11.7,
            "mean_per_class": 11.7,
            "images": 2400,
            "classes": 80,
        }
    ],
    "diagnostics": [
        {
            "text": "name+description",
            "classes": 200,
            "mean_cosine": 0.012,
            "mean_nearest_cosine": 0.41,
            "effective_rank": 96.2,
            "singular_values": [9.1, 6.7, 5.2],
        }
    ],
    "pulled_apart": [],
    "started_at": _WHEN,
    "finished_at": "2026-01-02T03:34:05Z",
}
EVENT_EXAMPLE: dict[str, Any] = {
    "seq": 3,
    "kind": "progress",
    "data": {"phase": "features", "step": 10, "steps": 94},
    "at": _WHEN,
}

Fence = Annotated[int, Field(ge=1, le=MAX_FENCE, description="The lease's number, from the claim")]


def _example(**example: object) -> ConfigDict:
    extra: dict[str, Any] = {"examples": [example]}
    return ConfigDict(extra="forbid", json_schema_extra=extra)


class Claim(BaseModel):
    """A worker asks for work."""

    model_config = _example(worker="gpu-1", gpu=True, memory_gb=64)

    worker: Annotated[str, Field(description="What people call the worker")]
    gpu: Annotated[StrictBool, Field(description="It has a GPU")] = False
    memory_gb: Annotated[
        float, Field(ge=0, strict=True, allow_inf_nan=False, description="Its main memory in GiB")
    ] = 0


class Heartbeat(BaseModel):
    """A worker is alive."""

    model_config = _example(fence=1)

    fence: Fence


class Renewed(BaseModel):
    """How long the lease lasts now, and whether the worker should stop."""

    model_config = _example(expires_at=_WHEN, cancel_requested=False)

    expires_at: datetime
    cancel_requested: bool


class EventIn(BaseModel):
    """One event, numbered by the worker within its lease."""

    model_config = ConfigDict(extra="forbid")

    worker_seq: Annotated[int, Field(ge=1, le=MAX_FENCE)]
    fence: Annotated[
        int | None,
        Field(ge=1, le=MAX_FENCE, description="The earlier lease that it is from, if it is"),
    ] = None
    kind: EventKind
    data: dict[str, JsonValue]
    at: Annotated[AwareDatetime | None, Field(description="Absent: when it is stored")] = None

    @field_validator("data")
    @classmethod
    def _is_short_json(cls, data: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            size = len(json.dumps(data, allow_nan=False, ensure_ascii=False).encode())
        except ValueError as error:
            raise ValueError(f"this is no JSON ({error}): send null for NaN") from error
        if size > MAX_EVENT_BYTES:
            raise ValueError(f"an event has at most {MAX_EVENT_BYTES} bytes, this has {size}")
        return data


class EventsIn(BaseModel):
    """Events in order. Posting them again stores nothing twice."""

    model_config = _example(
        fence=1,
        events=[{"worker_seq": 1, "kind": "log", "data": {"message": "cached 12,000 features"}}],
    )

    fence: Fence
    events: Annotated[list[EventIn], Field(max_length=1000)]


class EventsStored(BaseModel):
    """How many of the events were new."""

    model_config = _example(stored=1)

    stored: int


class Finish(BaseModel):
    """A worker is done with a job."""

    model_config = _example(fence=1, state="succeeded")

    fence: Fence
    state: Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
    error: Annotated[str | None, Field(description="One line, for a failed job")] = None
    out_of_memory: Annotated[StrictBool, Field(description="That is why it failed")] = False


class Upload(BaseModel):
    """How far an artifact that comes in chunks has got."""

    model_config = _example(offset=4_194_304, chunk=4_194_304)

    offset: Annotated[int, Field(description="Bytes that are here: go on there")]
    chunk: Annotated[int, Field(description="Bytes to send at a time")]


class ArtifactView(BaseModel):
    """A file that a job left."""

    model_config = _example(
        name="report.json",
        media_type="application/json",
        sha256="9f" * 32,
        size=20480,
        created_at=_WHEN,
    )

    name: str
    media_type: str
    sha256: str
    size: Annotated[int, Field(description="Bytes")]
    created_at: datetime
