"""What crosses the wire between the service and the worker: releases, jobs, events, reports.

Plain pydantic models. Neither FastAPI, SQLModel nor torch is needed to import them.
"""

from contract.event import Event, EventKind
from contract.job import (
    Job,
    JobCreate,
    JobState,
    Lease,
    LossWeights,
    Needs,
    TextStrategy,
    TrainConfig,
)
from contract.release import Release, ReleaseLabel, TextSource, release_hash
from contract.report import (
    Accuracy,
    ConfusablePair,
    Epoch,
    PulledApart,
    Report,
    TextDiagnostics,
)

__all__ = [
    "Accuracy",
    "ConfusablePair",
    "Epoch",
    "Event",
    "EventKind",
    "Job",
    "JobCreate",
    "JobState",
    "Lease",
    "LossWeights",
    "Needs",
    "PulledApart",
    "Release",
    "ReleaseLabel",
    "Report",
    "TextDiagnostics",
    "TextSource",
    "TextStrategy",
    "TrainConfig",
    "release_hash",
]
