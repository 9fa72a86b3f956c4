"""What a learned context does in the place of "a photo of"."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from contract.report import Accuracy


class PromptLearning(BaseModel):
    """A teacher's accuracy with hand-written and with learned context."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    release_hash: str
    file: Annotated[str, Field(description="The text bank with the learned context")]
    tokens: Annotated[int, Field(description="Learned context tokens")]
    described: Annotated[bool, Field(description="Whether the description stands behind the name")]
    steps: int
    seed: int
    loss_before: Annotated[float, Field(description="L_cls over all training images")]
    loss_after: float
    accuracies: tuple[Accuracy, ...]
