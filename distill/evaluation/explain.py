"""Explained predictions: each class is scored by each of its attributes.

The score of a class is the mean cosine of the image with its attributes, "a photo of {name} .
{attribute}" (Menon & Vondrick, arXiv 2210.07183). The text bank "attributes" keeps only the mean
feature of a class; here each attribute keeps its own, so that the attributes that fired can be
shown.

- Every release works: a class without attributes is explained by the sentences and clauses of its
  other texts, and a class without texts by its name.
- An attribute fires if its cosine is clearly above its mean over other images. For this, it is
  encoded without the class name: with the name, nearly all attributes of the right class would
  fire, whether the image shows them or not.
- A student's seen bias is subtracted from the scores of the classes that it was trained on.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from contract import Release
from distill.embeddings.attributes import attributes_of
from distill.embeddings.text_bank import encode_groups
from distill.errors import TextError, some
from distill.evaluation.accuracy import check_features
from distill.evaluation.score_norm import ScoreNorm
from distill.models.teacher import Teacher

FIRED: Final = 1.5  # standard deviations above the mean over other images


class AttributeEvidence(BaseModel):
    """One attribute of a class, and its similarity to an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Annotated[str, Field(description="As in the release, for example 'colours: rusty'")]
    cosine: Annotated[
        float, Field(description="Of the image and the attribute with the class name")
    ]
    evidence: Annotated[
        float | None,
        Field(
            description="Z-score of the cosine of the image and the attribute without the class "
            "name, relative to other images"
        ),
    ]
    fired: Annotated[
        bool | None,
        Field(description="Whether the evidence is above 1.5; null without images to compare with"),
    ]


class ExplainedClass(BaseModel):
    """A class with its score and its attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    name: str
    score: Annotated[
        float,
        Field(
            description="Mean cosine over the attributes, minus the seen bias if the student was "
            "trained on the class"
        ),
    ]
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
    """The encoded attributes of all classes, in the order of the classes.

    Unit features [attributes, dim]: `features` of each attribute with the name of its class, `bare`
    of the attribute without it.
    """

    features: Tensor
    bare: Tensor
    owners: Tensor  # [attributes] indices into `keys`
    attributes: tuple[str, ...]
    keys: tuple[str, ...]
    names: tuple[str, ...]

    def scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [images, attributes] and class scores [images, classes] of image `features`.

        `features` [images, dim] need not be normalised.

        Raises:
            TextError: images and texts have different dimensions.
            DataError: a feature is not finite.
        """
        check_features(features, self.features)
        cosines = normalize(features, dim=1) @ self.features.T
        counts = torch.bincount(self.owners, minlength=len(self.keys))
        sums = cosines.new_zeros(len(cosines), len(self.keys))
        return cosines, sums.index_add_(1, self.owners, cosines) / counts


def encode_attributes(teacher: Teacher, release: Release) -> AttributeTexts:
    """Encode the attributes of every label of `release`."""
    groups: list[tuple[tuple[str], str]] = []
    bare: list[tuple[tuple[str], str]] = []
    owners: list[int] = []
    attributes: list[str] = []
    for owner, label in enumerate(release.labels):
        prefix = f"a photo of {label.name}"
        for text in attributes_of(label) or ("",):
            groups.append(((f"{prefix} . {text}",), f"{prefix} . ") if text else ((prefix,), ""))
            bare.append(((text or prefix,), ""))
            attributes.append(text or label.name)
            owners.append(owner)
    return AttributeTexts(
        features=encode_groups(teacher, groups),
        bare=encode_groups(teacher, bare),
        owners=torch.tensor(owners),
        attributes=tuple(attributes),
        keys=tuple(label.key for label in release.labels),
        names=tuple(label.name for label in release.labels),
    )


def restrict(release: Release, classes: Sequence[str]) -> Release:
    """`release` with only the labels whose key or name is in `classes`; all labels if it is empty.

    Raises:
        TextError: the release has no such class.
    """
    if not classes:
        return release
    names = {key: label for label in release.labels for key in (label.name, label.key)}
    if missing := [wanted for wanted in classes if wanted not in names]:
        near = difflib.get_close_matches(missing[0], names, n=3, cutoff=0.5)
        raise TextError(
            f"the release {release.name!r} has no class {some(missing)}"
            + (f": did you mean {' or '.join(map(repr, near))}?" if near else "")
        )
    keys = {names[wanted].key for wanted in classes}
    labels = tuple(label for label in release.labels if label.key in keys)
    return release.model_copy(update={"labels": labels})


def explain(
    features: Tensor,
    texts: AttributeTexts,
    top: int,
    norm: ScoreNorm | None = None,
    biases: Tensor | None = None,
) -> tuple[tuple[ExplainedClass, ...], ...]:
    """The `top` classes of each image, best first, with their attributes, strongest first.

    `features` [images, dim] need not be normalised. `norm` has the moments of the model's features
    of other images. With it, the evidence of an attribute is its standardised cosine, and the
    attribute fires if that is above FIRED; without it, attributes are ordered by their cosines.
    `biases` [classes] are subtracted from the scores of the classes.

    Raises:
        TextError, DataError: as in `AttributeTexts.scores`.
    """
    cosines, scores = texts.scores(features)
    scores = scores if biases is None else scores - biases
    evidence = None if norm is None else norm.scores(features, texts.bare)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return tuple(
        tuple(
            ExplainedClass(
                key=texts.keys[index],
                name=texts.names[index],
                score=scores[image, index].item(),
                attributes=_attributes(
                    texts, index, cosines[image], None if evidence is None else evidence[image]
                ),
            )
            for index in best[image].tolist()
        )
        for image in range(len(features))
    )


def _attributes(
    texts: AttributeTexts, index: int, cosines: Tensor, evidence: Tensor | None
) -> tuple[AttributeEvidence, ...]:
    own: Sequence[int] = (texts.owners == index).nonzero()[:, 0].tolist()
    order = cosines if evidence is None else evidence
    return tuple(
        AttributeEvidence(
            attribute=texts.attributes[row],
            cosine=cosines[row].item(),
            evidence=None if evidence is None else evidence[row].item(),
            fired=None if evidence is None else bool(evidence[row] > FIRED),
        )
        for row in sorted(own, key=lambda row: -order[row].item())
    )
