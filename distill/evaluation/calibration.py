"""Probabilities that mean something, and images that are of no class.

A temperature turns cosines into probabilities (Guo et al., ICML 2017, arXiv 1706.04599). It is
fitted on seen validation images alone. How much the probabilities can be trusted is the expected
calibration error (ECE): the mean difference between the probability of the best class and how often
it is right, over bins of that probability.

An image is called unknown where its best class scores below a threshold. How well a score tells the
images of listed classes from others is the area under the ROC curve (AUROC), and the share of
others that pass where 95 % of the listed ones do (FPR at 95 % TPR).
"""

import math
from typing import Final

import torch
from torch import Tensor

from contract import ReliabilityBin

BINS: Final = 15
TEMPERATURES: Final = (1e-4, 10.0)  # searched between; cosines differ by 2 at most
BISECTIONS: Final = 60


def fit_temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature at which softmax(scores / temperature) gives `targets` most likelihood.

    `scores` [images, classes], `targets` [images] index the classes. The negative log-likelihood is
    convex in 1 / temperature, so its slope is bisected. Where every image is right or every one is
    a guess, the nearer end of TEMPERATURES.
    """
    scores = scores.double()
    chosen = scores.gather(1, targets[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        probabilities = torch.softmax(scores * inverse, dim=1)
        return float(((probabilities * scores).sum(dim=1) - chosen).mean())

    low, high = (math.log(1 / temperature) for temperature in reversed(TEMPERATURES))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) <= 0:  # more certain is more likely, or all the same
            low = middle
        else:
            high = middle
    return 1 / math.exp((low + high) / 2)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """In percent. `probabilities` [images, classes], `targets` [images] index the classes."""
    return _calibration_error(*_confidence(probabilities, targets), bins)


def _confidence(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    confidence, best = probabilities.double().max(dim=1)
    return confidence, (best == targets).double()


def _calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    inside = _bins_of(confidence, bins)
    gaps = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, inside, confidence - right)
    return 100 * float(gaps.abs().sum()) / len(confidence)


def _bins_of(confidence: Tensor, bins: int) -> Tensor:
    """(0, 1/bins], …, (…, 1]."""
    return (confidence * bins).ceil().clamp(1, bins).long() - 1


def reliability(
    probabilities: Tensor, targets: Tensor, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram. `probabilities` [images, classes], `targets` [images]."""
    return _reliability(*_confidence(probabilities, targets), bins)


def cross_fitted_reliability(
    scores: Tensor, targets: Tensor, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram with temperatures that were fitted on other images."""
    return _reliability(*_cross_fitted(scores, targets), bins)


def _reliability(confidence: Tensor, right: Tensor, bins: int) -> tuple[ReliabilityBin, ...]:
    inside = _bins_of(confidence, bins)
    return tuple(
        ReliabilityBin(
            images=int(own.sum()),
            confidence=float(confidence[own].mean()),
            accuracy=float(right[own].mean()),
        )
        for own in (inside == each for each in range(bins))
        if own.any()
    )


def cross_fitted_error(scores: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """ECE in percent with temperatures that were fitted on other images.

    Every second image gets the temperature of the rest, and the other way round. `scores`
    [images, classes], `targets` [images].
    """
    return _calibration_error(*_cross_fitted(scores, targets), bins)


def _cross_fitted(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    halves = [torch.arange(len(scores)) % 2 == half for half in (0, 1)]
    pairs = []
    for test, fit in (halves, halves[::-1]):
        temperature = fit_temperature(scores[fit], targets[fit])
        probabilities = torch.softmax(scores[test].double() / temperature, dim=1)
        pairs.append(_confidence(probabilities, targets[test]))
    confidence, right = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return confidence, right


def auroc(known: Tensor, unknown: Tensor) -> float:
    """The probability, 0 to 1, that a known image scores above an unknown one; ties count half.

    `known` [images], `unknown` [images] are scores that should be high for known images.
    """
    ordered = unknown.double().sort().values
    below = torch.searchsorted(ordered, known.double(), right=False)
    not_above = torch.searchsorted(ordered, known.double(), right=True)
    return float((below + not_above).double().mean()) / (2 * len(unknown))


def threshold_at(known: Tensor, share: float = 0.95) -> float:
    """The largest threshold that at least `share` of the scores `known` [images] reach."""
    ordered = known.double().sort(descending=True).values
    return float(ordered[math.ceil(share * len(ordered)) - 1])


def false_positive_rate(known: Tensor, unknown: Tensor, share: float = 0.95) -> float:
    """The share of `unknown` scores, in percent, that reach what `share` of `known` reach."""
    return 100 * float((unknown.double() >= threshold_at(known, share)).double().mean())
