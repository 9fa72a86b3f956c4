"""Calibration of probabilities, and detection of images of unknown classes.

Temperature scaling turns cosines into probabilities (Guo et al., ICML 2017, arXiv 1706.04599). The
temperature is fitted on seen validation images only. The expected calibration error (ECE) is the
mean difference between the probability of the best class and its accuracy, over bins of that
probability.

An image is unknown if its best score is below a threshold. Scores for this are compared by the area
under the ROC curve (AUROC) and by the false positive rate at 95 % true positive rate: the fraction
of images of other classes that pass the threshold that 95 % of the images of listed classes pass.
"""

import math
from typing import Final

import torch
from torch import Tensor

from contract import ReliabilityBin

BINS: Final = 15
TEMPERATURES: Final = (1e-4, 10.0)  # search range; cosines differ by 2 at most
BISECTIONS: Final = 60


def fit_temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature for which softmax(scores / temperature) is most likely to give `targets`.

    `scores` [images, classes]; `targets` [images] index the classes. The negative log-likelihood is
    convex in 1 / temperature, so a bisection of its derivative finds the minimum. The result is an
    end of TEMPERATURES if all images are right or the scores carry no information.
    """
    scores = scores.double()
    chosen = scores.gather(1, targets[:, None]).squeeze(1)

    def derivative(inverse: float) -> float:
        probabilities = torch.softmax(scores * inverse, dim=1)
        return float(((probabilities * scores).sum(dim=1) - chosen).mean())

    low, high = (math.log(1 / temperature) for temperature in reversed(TEMPERATURES))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if derivative(math.exp(middle)) <= 0:  # a lower temperature is at least as likely
            low = middle
        else:
            high = middle
    return 1 / math.exp((low + high) / 2)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """ECE in percent. `probabilities` [images, classes]; `targets` [images] index the classes."""
    return _calibration_error(*_confidence(probabilities, targets), bins)


def _confidence(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    confidence, best = probabilities.double().max(dim=1)
    return confidence, (best == targets).double()


def _calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    bin_index = _bins_of(confidence, bins)
    gaps = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, bin_index, confidence - right)
    return 100 * float(gaps.abs().sum()) / len(confidence)


def _bins_of(confidence: Tensor, bins: int) -> Tensor:
    """The index [images] of the bin of each confidence: (0, 1/bins], …, (1 − 1/bins, 1]."""
    return (confidence * bins).ceil().clamp(1, bins).long() - 1


def reliability(
    probabilities: Tensor, targets: Tensor, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram. `probabilities` [images, classes], `targets` [images]."""
    return _reliability(*_confidence(probabilities, targets), bins)


def cross_fitted_reliability(
    scores: Tensor, targets: Tensor, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram with cross-fitted temperatures.

    `scores` [images, classes]; `targets` [images] index the classes.
    """
    return _reliability(*_cross_fitted(scores, targets), bins)


def _reliability(confidence: Tensor, right: Tensor, bins: int) -> tuple[ReliabilityBin, ...]:
    bin_index = _bins_of(confidence, bins)
    return tuple(
        ReliabilityBin(
            images=int(in_bin.sum()),
            confidence=float(confidence[in_bin].mean()),
            accuracy=float(right[in_bin].mean()),
        )
        for in_bin in (bin_index == index for index in range(bins))
        if in_bin.any()
    )


def cross_fitted_error(scores: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """ECE in percent with cross-fitted temperatures: each half of the images (even and odd indices)
    uses the temperature fitted on the other half.

    `scores` [images, classes]; `targets` [images] index the classes.
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
    """Area under the ROC curve, 0 to 1: the probability that a known image scores above an unknown
    one, where ties count half.

    `known` [images] and `unknown` [images] are scores that should be high for known images.
    """
    ordered = unknown.double().sort().values
    below = torch.searchsorted(ordered, known.double(), right=False)
    not_above = torch.searchsorted(ordered, known.double(), right=True)
    return float((below + not_above).double().mean()) / (2 * len(unknown))


def threshold_at(known: Tensor, share: float = 0.95) -> float:
    """The largest threshold that at least the fraction `share` of `known` [images] reach."""
    ordered = known.double().sort(descending=True).values
    return float(ordered[math.ceil(share * len(ordered)) - 1])


def false_positive_rate(known: Tensor, unknown: Tensor, share: float = 0.95) -> float:
    """Percentage of `unknown` scores that reach `threshold_at(known, share)`."""
    return 100 * float((unknown.double() >= threshold_at(known, share)).double().mean())
