"""What crosses the wire between the service and the worker: releases, jobs, events, reports.

Plain pydantic models. Neither FastAPI, SQLModel nor torch is needed to import them.
"""

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
    Preflight,
    PulledApart,
    Report,
    SeedAccuracy,
    SeedImitation,
    SeedsReport,
    SplitCount,
    SplitName,
    Spread,
    TextDiagnostics,
)

__all__ = [
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
    "Imitation",
    "Job",
    "JobCreate",
    "JobState",
    "Lease",
    "LossWeights",
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
    "SplitCount",
    "SplitName",
    "Spread",
    "TextDiagnostics",
    "TextSource",
    "TextStrategy",
    "TrainConfig",
    "release_hash",
]
