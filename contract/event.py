"""Progress of a job, in order and without gaps."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class EventKind(StrEnum):
    """What an event tells."""

    STATE = "state"  # data: {"state": …}
    LOG = "log"  # data: {"message": …}
    EPOCH = "epoch"  # data: an `Epoch` of the report
    PROGRESS = "progress"  # data: {"step": …, "steps": …, "phase": …}


class Event(BaseModel):
    """One line of a job's history. `seq` counts from 1 within the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: Annotated[int, Field(ge=1)]
    kind: EventKind
    data: dict[str, Any]
    at: datetime
