"""Reasons for a prediction: attributes of the class that the image shows. Needs only numpy.

The evidence for an attribute in an image is the Z-score of their cosine relative to seen photos
(as in `distill.evaluation.score_norm`). Raw cosines cannot be compared between attributes: some
texts have high cosines with any photo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distill.runtime.photo_class import Features, PhotoStatistics

CLEAR: Final = 1.5  # standard deviations above the mean over other photos
MAX_DIFFERENCES: Final = 3  # of each of the two classes


@dataclass(frozen=True)
class Reason:
    """An attribute of the best class, which it supports if `evidence` is above CLEAR."""

    text: str
    evidence: float
    supports: bool


@dataclass(frozen=True)
class Difference:
    """An attribute that only one of the two best classes has: the class with `key` and `name`.

    `difference` is how much higher the attribute's cosine with the text of that class is than with
    the text of the other, in standard deviations over photos; `evidence` is as in `Reason`.
    """

    text: str
    key: str
    name: str
    difference: float
    evidence: float


@dataclass(frozen=True)
class Reasons:
    """The attributes of the best class, strongest first, and its differences from the runner-up.

    `runner_up` is the key of the second best class, None if there is no other class.
    """

    attributes: tuple[Reason, ...]
    runner_up: str | None
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class DescribedClass:
    """A class with its attributes: unit `features` [attributes, dim], and its `row` [dim] of the
    text bank.
    """

    key: str
    name: str
    attributes: Sequence[str]
    features: Features
    row: Features


def find_reasons(
    image: Features,
    best: DescribedClass,
    runner_up: DescribedClass | None,
    statistics: PhotoStatistics,
) -> Reasons:
    """Reasons for predicting the class `best` for an image with unit features `image` [dim]."""
    evidence = statistics.evidence(image, best.features)
    reasons = [
        Reason(text, float(value), bool(value > CLEAR))
        for text, value in zip(best.attributes, evidence, strict=True)
    ]
    reasons.sort(key=lambda reason: -reason.evidence)
    if runner_up is None:
        return Reasons(tuple(reasons), None, ())
    differences = (
        *_differences(image, best, runner_up, statistics),
        *_differences(image, runner_up, best, statistics),
    )
    return Reasons(tuple(reasons), runner_up.key, differences)


def _differences(
    image: Features, own: DescribedClass, other: DescribedClass, statistics: PhotoStatistics
) -> list[Difference]:
    """Attributes of `own` that `other` does not have, the clearest first."""
    shared = {text.casefold() for text in other.attributes}
    gaps = own.features @ (own.row - other.row) / statistics.deviations(own.features)
    evidence = statistics.evidence(image, own.features)
    differences = [
        Difference(text, own.key, own.name, float(gap), float(value))
        for text, gap, value in zip(own.attributes, gaps, evidence, strict=True)
        if gap > 0 and text.casefold() not in shared
    ]
    return sorted(differences, key=lambda d: -d.difference)[:MAX_DIFFERENCES]
