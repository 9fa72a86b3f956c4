"""Why an image was taken for a class: the attributes of its text that fired."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class AttributeEvidence(BaseModel):
    """One attribute of a class, and how well an image fits it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Annotated[str, Field(description="'colours: rusty', as the release has it")]
    cosine: float
    evidence: Annotated[
        float, Field(description="Cosine above the image's mean over all attributes of all classes")
    ]
    fired: Annotated[bool, Field(description="Whether it speaks for the class: evidence above 0")]


class ExplainedClass(BaseModel):
    """A class, its score and what the score is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    name: str
    score: Annotated[float, Field(description="Mean cosine over the class's attributes")]
    attributes: Annotated[tuple[AttributeEvidence, ...], Field(description="Strongest first")]


class Explanation(BaseModel):
    """The most probable classes of one image, best first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    classes: tuple[ExplainedClass, ...]


class Explanations(BaseModel):
    """What one model sees in some images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["teacher", "student"]
    teacher: str
    release_hash: str
    images: tuple[Explanation, ...]
