"""API schema of jobs and workers that `contract` does not define."""

import json
import logging
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    StrictBool,
    ValidationError,
    model_validator,
)

from contract import EventKind, JobState, check_event_data, first_error_line
from enrich_service.core.text import escaped
from enrich_service.workers.schemas import WorkerName

log = logging.getLogger(__name__)

MAX_EVENT_BYTES = 100_000
MAX_WORKER_SEQ = 2**31 - 1
MAX_ERROR = 2000  # characters
MAX_LOG_LINE = 10_000  # characters
_FENCE = "3q2-7wqpZ9mB0yNf1XkT5w"
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
    "fence": _FENCE,
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

Fence = Annotated[
    str,
    Field(min_length=1, max_length=100, description="Fencing token of the lease, from the claim"),
]


def _example(**example: object) -> ConfigDict:
    extra: dict[str, Any] = {"examples": [example]}
    return ConfigDict(extra="forbid", json_schema_extra=extra)


class Claim(BaseModel):
    """A worker's request for a job."""

    model_config = _example(worker="gpu-1", gpu=True, memory_gb=64)

    worker: WorkerName
    gpu: Annotated[StrictBool, Field(description="Whether the worker has a GPU")] = False
    memory_gb: Annotated[
        float, Field(ge=0, strict=True, allow_inf_nan=False, description="Main memory in GiB")
    ] = 0


class Heartbeat(BaseModel):
    """A worker's heartbeat."""

    model_config = _example(fence=_FENCE)

    fence: Fence


class Renewed(BaseModel):
    """The renewed lease, and whether the worker should stop."""

    model_config = _example(expires_at=_WHEN, cancel_requested=False)

    expires_at: datetime
    cancel_requested: bool


class EventIn(BaseModel):
    """One event, numbered by the worker within its lease.

    An event whose data is invalid for its kind is stored as a log line with the error.
    """

    model_config = ConfigDict(extra="forbid")

    worker_seq: Annotated[int, Field(ge=1, le=MAX_WORKER_SEQ)]
    fence: Annotated[
        Fence | None, Field(description="Fencing token of an earlier lease that the event is from")
    ] = None
    kind: EventKind
    data: dict[str, JsonValue]
    at: Annotated[AwareDatetime | None, Field(description="Default: time of storage")] = None

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        size = len(json.dumps(self.data, allow_nan=False).encode())
        if size > MAX_EVENT_BYTES:
            raise ValueError(f"an event has at most {MAX_EVENT_BYTES} bytes, this has {size}")
        self.data = check_event_data(self.kind, self.data)
        json.dumps(
            self.data, allow_nan=False
        )  # rejects "inf" and "nan", which were parsed as floats
        for name, value in self.data.items():
            if isinstance(value, str):
                self.data[name] = escaped(value, MAX_LOG_LINE)
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _convert_invalid_to_log(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        try:
            return validate(value)
        except ValidationError as error:
            if not isinstance(value, dict) or value.get("kind") is None:
                raise
            content = {name: value.get(name) for name in ("kind", "data", "at")}
            reason = first_error_line(error, "")
            message = f"invalid event: {reason}: {repr(content)[: MAX_LOG_LINE // 2]}"
            ids = {name: value[name] for name in ("worker_seq", "fence") if name in value}
            event = validate({**ids, "kind": EventKind.LOG, "data": {"message": message}})
            log.warning("a worker sent an invalid event: %s", reason)
            return event


class EventsIn(BaseModel):
    """Events in order. Posting is idempotent."""

    model_config = _example(
        fence=_FENCE,
        events=[{"worker_seq": 1, "kind": "log", "data": {"message": "cached 12,000 features"}}],
    )

    fence: Fence
    events: Annotated[list[EventIn], Field(max_length=1000)]


class EventsStored(BaseModel):
    """The number of new events."""

    model_config = _example(stored=1)

    stored: int


def _error_line(error: object) -> object:
    """Escape a worker's error message."""
    return escaped(error, MAX_ERROR) if isinstance(error, str) else error


class Finish(BaseModel):
    """The final state of a job."""

    model_config = _example(fence=_FENCE, state="succeeded")

    fence: Fence
    state: Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
    error: Annotated[
        str | None,
        BeforeValidator(_error_line),
        Field(description="Error message of a failed job, one line"),
    ] = None
    out_of_memory: Annotated[
        StrictBool, Field(description="Whether the job failed because memory ran out")
    ] = False


class Upload(BaseModel):
    """Progress of a chunked upload."""

    model_config = _example(offset=4_194_304, chunk=4_194_304)

    offset: Annotated[int, Field(description="Bytes received; continue here")]
    chunk: Annotated[int, Field(description="Chunk size in bytes")]


class ArtifactView(BaseModel):
    """A file of a job."""

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
