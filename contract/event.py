"""Events of a job: states, log lines, epochs, progress."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from contract.report import Epoch


class EventKind(StrEnum):
    """The kind of an event, which determines its data."""

    STATE = "state"  # data: {"state": …}; only the service writes these
    LOG = "log"  # data: a `LogLine`
    EPOCH = "epoch"  # data: an `Epoch` of the report
    PROGRESS = "progress"  # data: a `Progress`


class LogLine(BaseModel):
    """The data of a `log` event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str


class Progress(BaseModel):
    """The data of a `progress` event: how many steps of a phase are done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    step: Annotated[int, Field(ge=0, le=2**53)]
    steps: Annotated[int, Field(ge=0, le=2**53)]


_WORKER_EVENTS: Mapping[EventKind, type[BaseModel]] = {
    EventKind.LOG: LogLine,
    EventKind.EPOCH: Epoch,
    EventKind.PROGRESS: Progress,
}


def check_event_data(kind: EventKind, data: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the data of a worker's event by its kind.

    Raises pydantic's ValidationError, or ValueError for a kind that workers must not send.
    """
    model = _WORKER_EVENTS.get(kind)
    if model is None:
        raise ValueError(f"workers must not send {kind.value} events")
    return model.model_validate(data).model_dump(mode="json")


class Event(BaseModel):
    """One event of a job's history. `seq` counts from 1 within the job, without gaps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: Annotated[int, Field(ge=1)]
    kind: EventKind
    data: dict[str, Any]
    at: datetime
