"""Explained predictions: a class is scored by each of its attributes.

The score of a class is the mean cosine of the image with its attributes, "a photo of {name} .
{attribute}" (Menon & Vondrick, arXiv 2210.07183). The text bank "attributes" keeps only the mean
feature of a class; here each attribute keeps its own, so that the ones that fired can be shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from contract import Release
from distill.embeddings.prompts import prefix_of, prompts_of
from distill.embeddings.text_bank import encode_groups
from distill.evaluation.accuracy import check_features
from distill.models.teacher import Teacher


class AttributeEvidence(BaseModel):
    """One attribute of a class, and how well an image fits it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Annotated[str, Field(description="'colours: rusty', as the release has it")]
    cosine: float
    evidence: Annotated[
        float, Field(description="Cosine above the image's mean over all attributes of all classes")
    ]
    fired: Annotated[bool, Field(description="Whether the evidence is above 0")]


class ExplainedClass(BaseModel):
    """A class, its score and the attributes behind it."""

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
    """The explained predictions of one model for some images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["teacher", "student"]
    teacher: str
    release_hash: str
    images: tuple[Explanation, ...]


@dataclass(frozen=True)
class AttributeTexts:
    """Each attribute of each class: unit features [attributes, dim], class after class."""

    features: Tensor
    owners: Tensor  # [attributes] indices into `keys`
    attributes: tuple[str, ...]
    keys: tuple[str, ...]
    names: tuple[str, ...]

    def scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [images, attributes] and class scores [images, classes] of image `features`.

        `features` [images, dim] need no normalisation.

        Raises:
            TextError: the two have different dimensions.
            DataError: a feature is not finite.
        """
        check_features(features, self.features)
        cosines = normalize(features, dim=1) @ self.features.T
        counts = torch.bincount(self.owners, minlength=len(self.keys))
        sums = cosines.new_zeros(len(cosines), len(self.keys))
        return cosines, sums.index_add_(1, self.owners, cosines) / counts


def encode_attributes(teacher: Teacher, release: Release) -> AttributeTexts:
    """The attribute texts of every label of `release`.

    Raises:
        TextError: a label has no attributes.
    """
    prompts = [prompts_of(label, "attributes") for label in release.labels]
    prefixes = [prefix_of(label, "attributes") for label in release.labels]
    groups = [
        ((text,), prefix) for texts, prefix in zip(prompts, prefixes, strict=True) for text in texts
    ]
    return AttributeTexts(
        features=encode_groups(teacher, groups),
        owners=torch.tensor([index for index, texts in enumerate(prompts) for _ in texts]),
        attributes=tuple(text.removeprefix(prefix) for (text,), prefix in groups),
        keys=tuple(label.key for label in release.labels),
        names=tuple(label.name for label in release.labels),
    )


def explain(
    features: Tensor, texts: AttributeTexts, top: int
) -> tuple[tuple[ExplainedClass, ...], ...]:
    """The `top` classes of each image, best first, with their attributes, strongest first.

    An attribute's evidence is its cosine minus the image's mean cosine with all attributes of all
    classes; it fired where that is above 0. The mean evidence of a class is its score less that
    same mean.

    Raises:
        TextError, DataError: as `AttributeTexts.scores`.
    """
    cosines, scores = texts.scores(features)
    evidence = cosines - cosines.mean(dim=1, keepdim=True)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return tuple(
        tuple(
            ExplainedClass(
                key=texts.keys[index],
                name=texts.names[index],
                score=scores[image, index].item(),
                attributes=_attributes(texts, index, cosines[image], evidence[image]),
            )
            for index in best[image].tolist()
        )
        for image in range(len(features))
    )


def _attributes(
    texts: AttributeTexts, index: int, cosines: Tensor, evidence: Tensor
) -> tuple[AttributeEvidence, ...]:
    own: Sequence[int] = (texts.owners == index).nonzero()[:, 0].tolist()
    return tuple(
        AttributeEvidence(
            attribute=texts.attributes[row],
            cosine=cosines[row].item(),
            evidence=evidence[row].item(),
            fired=bool(evidence[row] > 0),
        )
        for row in sorted(own, key=lambda row: -evidence[row].item())
    )
