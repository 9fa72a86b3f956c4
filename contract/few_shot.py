"""What a few labelled images of each unseen class add to its text.

Accuracies are percent (0–100), on the unseen images that were not drawn as support.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FewShotMethod = Literal["retrieval", "finetune"]


class FewShotRow(BaseModel):
    """One model with k images a class: means over the seeds that drew them, and deviations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["teacher", "student"]
    k: Annotated[int, Field(ge=1, description="Support images of each class")]
    top1: float
    top1_deviation: Annotated[
        float | None, Field(description="Sample deviation over seeds; none for one seed")
    ]
    mean_per_class: float
    mean_per_class_deviation: float | None
    text_only_top1: Annotated[float, Field(description="Without support, on the same images")]
    seen_top1: Annotated[
        float | None, Field(description="Of the finetuned student, to show what it forgot")
    ] = None
    images: Annotated[int, Field(description="Tested for each seed")]


class FewShot(BaseModel):
    """Few-shot accuracies of a run's student, and what they were reached with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FewShotMethod
    student: str
    teacher: str
    text: Annotated[str, Field(description="Text strategy")]
    release_hash: str
    classes: int
    seeds: tuple[int, ...]
    settings: Annotated[
        dict[str, float], Field(description="alpha, beta, scale; or epochs, learning_rate")
    ]
    rows: tuple[FewShotRow, ...]
