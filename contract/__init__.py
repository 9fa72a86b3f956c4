"""What crosses the wire between the service and the worker: releases, jobs, events, reports.

Plain pydantic models. Neither FastAPI, SQLModel nor torch is needed to import them.
"""

from contract.caption import IMAGE_SUFFIXES, ImageCaption
from contract.event import Event, EventKind
from contract.explanation import (
    AttributeEvidence,
    ExplainedClass,
    Explanation,
    Explanations,
)
from contract.few_shot import FewShot, FewShotMethod, FewShotRow
from contract.job import (
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
from contract.prompt_learning import PromptLearning
from contract.release import Release, ReleaseLabel, TextSource, release_hash
from contract.report import (
    Accuracy,
    ClassMargin,
    ConfusablePair,
    Epoch,
    Imitation,
    Move,
    Preflight,
    PulledApart,
    Report,
    SeedAccuracy,
    SeedImitation,
    SeedsReport,
    Similarity,
    SimilarityPicture,
    SplitCount,
    SplitName,
    Spread,
    TextDiagnostics,
    TextPlane,
    Thumbnails,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "Accuracy",
    "AttributeEvidence",
    "ClassMargin",
    "ConfusablePair",
    "Epoch",
    "Event",
    "EventKind",
    "ExplainedClass",
    "Explanation",
    "Explanations",
    "FewShot",
    "FewShotMethod",
    "FewShotRow",
    "ImageCaption",
    "Imitation",
    "Job",
    "JobCreate",
    "JobState",
    "Lease",
    "LossWeights",
    "Move",
    "Needs",
    "Preflight",
    "PromptLearning",
    "PulledApart",
    "Release",
    "ReleaseLabel",
    "Report",
    "SeedAccuracy",
    "SeedImitation",
    "SeedsReport",
    "Similarity",
    "SimilarityPicture",
    "SplitCount",
    "SplitName",
    "Spread",
    "TestViews",
    "TextDiagnostics",
    "TextPlane",
    "TextSource",
    "TextStrategy",
    "Thumbnails",
    "TrainConfig",
    "release_hash",
]
