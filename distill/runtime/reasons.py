"""Why an image got its class: attributes of the class that the image shows. Needs numpy alone.

The evidence of an attribute in an image is the cosine of the two, in deviations above its mean over
seen photos (Z-norm, as `distill.evaluation.score_norm`). Texts differ in how close they lie to
photos of anything; only the comparison with other photos says what this one shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distill.runtime.photo_class import Features, PhotoStatistics

CLEAR: Final = 1.5  # deviations above the mean over other photos
MOST_DIFFERENCES: Final = 3  # shown of each of the two classes


@dataclass(frozen=True)
class Reason:
    """An attribute of the best class. It speaks for it where its evidence is above CLEAR."""

    text: str
    evidence: float
    speaks: bool


@dataclass(frozen=True)
class Difference:
    """An attribute that only one of the two best classes has: that with this `key` and `name`.

    `difference` says how much closer, in deviations over photos, the attribute lies to the text of
    that class than to the text of the other one; `evidence` whether the image shows it.
    """

    text: str
    key: str
    name: str
    difference: float
    evidence: float


@dataclass(frozen=True)
class Reasons:
    """The attributes of the best class, strongest first, and what tells it from the runner-up.

    `runner_up` is the key of the second best class, None where there is no other.
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
    """Why the class `best` was found in an image with the unit features `image` [dim]."""
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
    """What `own` has and `other` has not, the clearest first."""
    shared = {text.casefold() for text in other.attributes}
    gaps = own.features @ (own.row - other.row) / statistics.deviations(own.features)
    evidence = statistics.evidence(image, own.features)
    found = [
        Difference(text, own.key, own.name, float(gap), float(value))
        for text, gap, value in zip(own.attributes, gaps, evidence, strict=True)
        if gap > 0 and text.casefold() not in shared
    ]
    return sorted(found, key=lambda each: -each.difference)[:MOST_DIFFERENCES]
