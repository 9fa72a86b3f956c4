"""Requests and responses of the REST interface."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from distill.runtime.manifest import ClassEntry


class CandidateOut(BaseModel):
    """One class for one photo."""

    model_config = ConfigDict(from_attributes=True)

    key: str
    name: str
    probability: float
    cosine: Annotated[float, Field(description="Of the photo features and the text features")]
    seen: Annotated[bool, Field(description="Whether the student was trained on its images")]


class ReasonOut(BaseModel):
    """An attribute of the best class."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    evidence: Annotated[
        float, Field(description="Z-score of its cosine with the photo, relative to other photos")
    ]
    supports: Annotated[
        bool, Field(description="Whether it supports the class: evidence above 1.5")
    ]


class DifferenceOut(BaseModel):
    """An attribute that only one of the two best classes has."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    key: Annotated[str, Field(description="Key of the class that has it")]
    name: str
    difference: Annotated[
        float,
        Field(
            description="How much higher its cosine with the text of its class is than with that "
            "of the other class, in standard deviations"
        ),
    ]
    evidence: Annotated[float, Field(description="As for an attribute of the best class")]


class ReasonsOut(BaseModel):
    """Why a photo got its best class."""

    model_config = ConfigDict(from_attributes=True)

    attributes: Annotated[list[ReasonOut], Field(description="Of the best class, strongest first")]
    runner_up: Annotated[str | None, Field(description="Key of the second best class")]
    differences: Annotated[
        list[DifferenceOut], Field(description="Between the best class and the runner-up")
    ]


class PhotoOut(BaseModel):
    """Prediction for a photo: the likeliest classes, best first, or why it cannot be read."""

    photo: Annotated[str, Field(description="Name of the file, or its number in the request")]
    candidates: list[CandidateOut] = []
    unknown: Annotated[
        bool | None, Field(description="Whether the photo is probably of none of the classes")
    ] = None
    reasons: Annotated[
        ReasonsOut | None,
        Field(description="If requested; null if the classes have names only"),
    ] = None
    error: str | None = None


class Classified(BaseModel):
    """Predictions for the photos of a request, in order."""

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
                                    {"text": "a green head", "evidence": 2.4, "supports": True}
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

    classifier: Annotated[str, Field(description="Name of the classifier used")]
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
        bool, Field(description="Add it even if its text is very similar to that of another class")
    ] = False


class Classes(BaseModel):
    """The classes of the classifier, in its order."""

    classifier: Annotated[str, Field(description="Name of the classifier in use")]
    read_only: Annotated[bool, Field(description="Whether classes cannot be added or removed")]
    classes: list[ClassEntry]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The classifier in use, and its number of classes."""

    status: Literal["ok"] = "ok"
    classifier: str
    classes: int
    detail: Annotated[
        str | None, Field(description="Why a newer version is not served, if there is one")
    ] = None
