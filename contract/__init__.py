"""API schema shared by the service and the worker: releases, jobs, events, reports.

Plain pydantic models. Neither FastAPI, SQLModel nor torch is needed to import them.
"""

from contract.caption import IMAGE_SUFFIXES, ImageCaption
from contract.errors import first_error_line
from contract.event import Event, EventKind, LogLine, Progress, check_event_data
from contract.job import (
    CLASSIFIER_ARTIFACT,
    Job,
    JobCreate,
    JobState,
    Lease,
    LossWeights,
    Needs,
    TestViews,
    TextStrategy,
    TrainConfig,
)
from contract.release import Release, ReleaseLabel, TextSource, release_hash
from contract.report import (
    Accuracy,
    Calibration,
    ClassMargin,
    ConfusablePair,
    Epoch,
    Imitation,
    JointAccuracy,
    Move,
    Preflight,
    PulledApart,
    Report,
    Similarity,
    SimilarityPicture,
    SplitCount,
    SplitName,
    TextDiagnostics,
    TextPlane,
    Thumbnails,
)

__all__ = [
    "CLASSIFIER_ARTIFACT",
    "IMAGE_SUFFIXES",
    "Accuracy",
    "Calibration",
    "ClassMargin",
    "ConfusablePair",
    "Epoch",
    "Event",
    "EventKind",
    "ImageCaption",
    "Imitation",
    "Job",
    "JobCreate",
    "JobState",
    "JointAccuracy",
    "Lease",
    "LogLine",
    "LossWeights",
    "Move",
    "Needs",
    "Preflight",
    "Progress",
    "PulledApart",
    "Release",
    "ReleaseLabel",
    "Report",
    "Similarity",
    "SimilarityPicture",
    "SplitCount",
    "SplitName",
    "TestViews",
    "TextDiagnostics",
    "TextPlane",
    "TextSource",
    "TextStrategy",
    "Thumbnails",
    "TrainConfig",
    "check_event_data",
    "first_error_line",
    "release_hash",
]
