"""The documents of the REST interface."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from distill.runtime.manifest import ClassEntry


class CandidateOut(BaseModel):
    """One class for one photo."""

    model_config = ConfigDict(from_attributes=True)

    key: str
    name: str
    probability: float
    cosine: Annotated[float, Field(description="Of the photo's and the class text's features")]
    seen: Annotated[bool, Field(description="Whether the student was trained on its images")]


class ReasonOut(BaseModel):
    """An attribute of the best class."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    evidence: Annotated[
        float, Field(description="Deviations of its cosine above the mean over other photos")
    ]
    speaks: Annotated[bool, Field(description="Whether the evidence is clear: above 1.5")]


class DifferenceOut(BaseModel):
    """An attribute that only one of the two best classes has."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    key: Annotated[str, Field(description="Of the class that has it")]
    name: str
    difference: Annotated[
        float, Field(description="How much closer it lies to that class's text, in deviations")
    ]
    evidence: Annotated[float, Field(description="Whether the photo shows it, as of a reason")]


class ReasonsOut(BaseModel):
    """Why a photo got its best class."""

    model_config = ConfigDict(from_attributes=True)

    attributes: Annotated[list[ReasonOut], Field(description="Of the best class, strongest first")]
    runner_up: Annotated[str | None, Field(description="Key of the second best class")]
    differences: Annotated[
        list[DifferenceOut], Field(description="What tells the best class from the runner-up")
    ]


class PhotoOut(BaseModel):
    """What a photo shows: the likeliest classes, best first, or why it cannot be read."""

    photo: Annotated[str, Field(description="Name of the file, or its place in the request")]
    candidates: list[CandidateOut] = []
    unknown: Annotated[
        bool | None, Field(description="Whether the photo is likely of none of the classes")
    ] = None
    reasons: Annotated[
        ReasonsOut | None,
        Field(description="If asked for; null where the classes have no texts besides names"),
    ] = None
    error: str | None = None


class Classified(BaseModel):
    """The photos of a request, in its order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "classifier": "birds@production, version 3",
                    "photos": [
                        {
                            "photo": "duck.jpg",
                            "candidates": [
                                {
                                    "key": "mallard",
                                    "name": "mallard",
                                    "probability": 0.93,
                                    "cosine": 0.41,
                                    "seen": True,
                                }
                            ],
                            "unknown": False,
                            "reasons": {
                                "attributes": [
                                    {"text": "a green head", "evidence": 2.4, "speaks": True}
                                ],
                                "runner_up": "northern shoveler",
                                "differences": [
                                    {
                                        "text": "a wide flat bill",
                                        "key": "northern shoveler",
                                        "name": "northern shoveler",
                                        "difference": 1.9,
                                        "evidence": -0.3,
                                    }
                                ],
                            },
                            "error": None,
                        }
                    ],
                }
            ]
        }
    )

    classifier: Annotated[str, Field(description="Which classifier answered")]
    photos: list[PhotoOut]


class ClassCreate(BaseModel):
    """A new class."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "okapi", "text": "a horse-like animal with striped legs"},
                {"name": "okapi"},
            ]
        },
    )

    name: Annotated[str, Field(max_length=200)]
    text: Annotated[
        str | None,
        Field(
            max_length=10_000,
            description="What it looks like. Without it, the enrichment service or the language "
            "model of the server describes the class.",
        ),
    ] = None
    allow_near: Annotated[
        bool, Field(description="Add it even if its text is nearly that of another class")
    ] = False


class Classes(BaseModel):
    """The classes of the classifier, in their order."""

    classifier: Annotated[str, Field(description="Which classifier answers")]
    read_only: Annotated[bool, Field(description="Whether classes cannot be added or removed")]
    classes: list[ClassEntry]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What the server serves."""

    status: Literal["ok"] = "ok"
    classifier: str
    classes: int
    detail: Annotated[
        str | None, Field(description="Why a newer version is not served, if there is one")
    ] = None
