"""Forecast of the accuracy on classes that are added later, measured on left-out seen classes.

A proxy student is trained without some of the seen classes, which are unseen classes for it. The
accuracies among n new classes are computed from its scores.

- Classes, not images, are the sampling unit: another set of new classes is easier or harder as a
  whole. The interval is computed from the variance between the left-out classes. It accounts for
  the small number of left-out classes and for the n new classes being a sample.
- The proxy is less accurate than the student, since its training is shorter and has fewer classes.
  The gap on the classes that both were trained on is known (`shortfall`); on new classes it is
  smaller. A quarter of it is added, and the interval extends from none of it to half.
- The accuracy among n classes is the exact mean over all choices of n classes, not a simulation.
- Beyond the number of left-out classes the curve is extrapolated: the logit of the accuracy falls
  linearly with log n. If seen classes compete too, they count as additional new classes. Half of
  the extrapolated change is added to the error.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import torch
from torch import Tensor

from contract import Forecast, ForecastPoint, ForecastValue

CONFIDENCE: Final = 0.95
SHARE_OF_SHORTFALL: Final = 0.25  # on the demo, the student gained 0.22 of it on new classes
STEPS: Final = (2, 5, 10)  # numbers of new classes to forecast for, times powers of ten


@dataclass(frozen=True)
class ProxyScores:
    """Which classes score higher than the true class for each validation image, by the proxy.

    `new_images` and `kept_images` [images, left out] mark the left-out classes that score higher
    than the true class, for images of left-out and of kept classes. `new_targets` [images] is the
    true class of the former. `beats_kept` and `right` [images] mark images of left-out and of kept
    classes whose true class scores higher than all (other) kept classes.
    """

    new_images: Tensor  # bool
    new_targets: Tensor
    beats_kept: Tensor  # bool, of the images of left-out classes
    kept_images: Tensor  # bool
    right: Tensor  # bool, of the images of kept classes

    @classmethod
    def of(
        cls, cosines: Tensor, targets: Tensor, left_out: Tensor, seen_bias: float
    ) -> "ProxyScores":
        """From the proxy's `cosines` [images, seen classes].

        `targets` [images] and `left_out` [left out] are indices of seen classes. `seen_bias` is
        subtracted from the cosines of kept classes.
        """
        scores = cosines.double().clone()
        is_new = torch.isin(torch.arange(scores.shape[1]), left_out)
        scores[:, ~is_new] -= seen_bias
        own = scores.gather(1, targets[:, None])
        of_new = is_new[targets]
        beaten_by_new = scores[:, left_out] > own
        best_kept = scores[:, ~is_new].max(dim=1, keepdim=True).values
        index_among_new = torch.full((scores.shape[1],), -1)
        index_among_new[left_out] = torch.arange(len(left_out))
        return cls(
            new_images=beaten_by_new[of_new],
            new_targets=index_among_new[targets[of_new]],
            beats_kept=(own > best_kept)[of_new, 0],
            kept_images=beaten_by_new[~of_new],
            right=(own >= best_kept)[~of_new, 0],
        )

    @property
    def left_out(self) -> int:
        """The number of left-out classes."""
        return self.new_images.shape[1]


@dataclass(frozen=True)
class Accuracies:
    """Accuracies, 0 to 1, with n new classes; or their standard errors."""

    alone: float  # on new classes, among new classes
    joint_unseen: float  # on new classes, among all classes
    joint_seen: float  # on seen classes, among all classes


def numbers_of_classes(seen: int, others: Iterable[int]) -> tuple[int, ...]:
    """The numbers of new classes to forecast for: 2, 5, 10, 20 … up to `seen`, and `others`."""
    series = (step * 10**power for power in range(7) for step in STEPS)
    return tuple(sorted({*(number for number in series if number <= seen), seen, *others}))


def forecast_points(
    scores: ProxyScores, numbers: Iterable[int], shortfall: float, seen_accuracy: float
) -> tuple[ForecastPoint, ...]:
    """The expected accuracies for each of `numbers` of new classes.

    `shortfall` is the difference of the logits of student and proxy; `seen_accuracy` is the
    student's accuracy on the validation images among all seen classes, 0 to 1.
    """
    return tuple(_point(scores, number, shortfall, seen_accuracy) for number in numbers)


def shortfall(proxy: float, student: float) -> float:
    """The logit of the student's accuracy minus that of the proxy's, at least 0.

    Both accuracies, 0 to 1, are on the same images of kept classes.
    """
    edge = 1e-3
    clamped = [min(max(accuracy, edge), 1 - edge) for accuracy in (proxy, student)]
    proxy_logit, student_logit = (math.log(p / (1 - p)) for p in clamped)
    return max(0.0, student_logit - proxy_logit)


def forecast_line(forecast: Forecast) -> str:
    """One line for people: the forecast for as many new classes as were left out."""
    point = next(point for point in forecast.points if point.classes == forecast.left_out)
    alone, joint = point.alone, point.joint_unseen
    return (
        f"forecast for {point.classes} new classes: top-1 {alone.value:.0f} % among them "
        f"({alone.low:.0f} to {alone.high:.0f}), {joint.value:.0f} % among all classes "
        f"({joint.low:.0f} to {joint.high:.0f})"
    )


def _point(scores: ProxyScores, new: int, shortfall: float, seen_accuracy: float) -> ForecastPoint:
    expected, errors = accuracies_among(scores, new), _standard_errors(scores, new)
    quantile, likely = student_t(scores.left_out - 1), SHARE_OF_SHORTFALL * shortfall

    def value(share: float, error: float, added: float) -> ForecastValue:
        logit, half = _logit(share, scores), quantile * error
        ends = (logit + added, logit - half, logit + 2 * added + half)
        return ForecastValue(
            **dict(zip(("value", "low", "high"), map(_percent, ends), strict=True))
        )

    # More seen classes compete for the student than for the proxy: scale the student's accuracy by
    # the fraction that new classes leave.
    kept = expected.joint_seen / max(float(scores.right.double().mean()), 1e-9)
    seen = value(seen_accuracy * kept, errors.joint_seen, 0.0)
    unseen = value(expected.joint_unseen, errors.joint_unseen, likely)
    return ForecastPoint(
        classes=new,
        extrapolated=new > scores.left_out,
        alone=value(expected.alone, errors.alone, likely),
        joint_seen=seen,
        joint_unseen=unseen,
        joint_harmonic_mean=_harmonic_mean(seen, unseen),
    )


def _harmonic_mean(seen: ForecastValue, unseen: ForecastValue) -> ForecastValue:
    """The harmonic mean of two independent values, with its interval to first order."""
    total = seen.value + unseen.value or 1.0
    by_seen, by_unseen = (2 * (other.value / total) ** 2 for other in (unseen, seen))
    mean = 2 * seen.value * unseen.value / total
    below = math.hypot(by_seen * (seen.value - seen.low), by_unseen * (unseen.value - unseen.low))
    above = math.hypot(by_seen * (seen.high - seen.value), by_unseen * (unseen.high - unseen.value))
    return ForecastValue(value=mean, low=max(0.0, mean - below), high=min(100.0, mean + above))


def _standard_errors(scores: ProxyScores, new: int) -> Accuracies:
    """Standard errors of the logits, from sampling classes (left-out and new) and extrapolation."""
    most = scores.left_out
    both = math.sqrt(1 / most + 1 / new)
    measured, expected = accuracies_among(scores, min(new, most)), accuracies_among(scores, new)
    unbeaten = _chance_unbeaten(scores.new_images.sum(dim=1), most - 1, min(new, most) - 1)
    images = torch.bincount(scores.new_targets, minlength=most)

    def of_classes(hits: Tensor, mean: float) -> float:
        by_class = torch.bincount(scores.new_targets, weights=hits, minlength=most) / images
        return float(by_class.std()) * both / _slope(mean, scores)

    # The images lost to n new classes are proportional to the mean number lost to one.
    taken = (scores.kept_images & scores.right[:, None]).double().mean(dim=0)
    right, left = float(scores.right.double().mean()), _share(_logit(expected.joint_seen, scores))
    lost = max(0.0, math.log(right / left)) if right else 0.0
    spread = float(taken.std() / taken.mean()) * both if taken.any() else 0.0

    def with_extrapolation(name: str, error: float) -> float:
        change = _logit(getattr(measured, name), scores) - _logit(getattr(expected, name), scores)
        return math.hypot(error, change / 2)

    return Accuracies(
        alone=with_extrapolation("alone", of_classes(unbeaten, measured.alone)),
        joint_unseen=with_extrapolation(
            "joint_unseen", of_classes(unbeaten * scores.beats_kept, measured.joint_unseen)
        ),
        joint_seen=with_extrapolation("joint_seen", lost * spread / (1 - left)),
    )


def _slope(share: float, scores: ProxyScores) -> float:
    """The derivative of a share with respect to its logit; shares are clamped as in `_logit`."""
    inside = _share(_logit(share, scores))
    return inside * (1 - inside)


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t distribution.

    By the expansion around the normal quantile (Abramowitz & Stegun, 26.7.5); accurate to 1 % from
    three degrees of freedom.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def accuracies_among(scores: ProxyScores, new: int) -> Accuracies:
    """The accuracies with `new` new classes, extrapolated if fewer were left out."""
    most = scores.left_out
    if new <= most:
        return _measured(scores, new)
    half = max(2, most // 2)
    ends = _measured(scores, half), _measured(scores, most)
    alone = _logit(ends[0].alone, scores), _logit(ends[1].alone, scores)
    slope = (alone[0] - alone[1]) / math.log(most / half)

    def at(name: str) -> float:
        first, last = (_logit(getattr(end, name), scores) for end in ends)
        return _share(_extrapolated(first, last, half, most, new, slope))

    return Accuracies(at("alone"), at("joint_unseen"), at("joint_seen"))


def _measured(scores: ProxyScores, new: int) -> Accuracies:
    """Means over all choices of `new` of the left-out classes."""
    most = scores.left_out
    alone = _chance_unbeaten(scores.new_images.sum(dim=1), most - 1, new - 1)
    among_kept = _chance_unbeaten(scores.kept_images.sum(dim=1), most, new)
    return Accuracies(
        alone=float(alone.mean()),
        joint_unseen=float((alone * scores.beats_kept).mean()),
        joint_seen=float((among_kept * scores.right).mean()),
    )


def _chance_unbeaten(beaten: Tensor, others: int, chosen: int) -> Tensor:
    """The probability [images] that none of the `beaten` [images] classes that score higher is
    among `chosen` of `others` classes, float64: C(others − beaten, chosen) / C(others, chosen).
    """
    free = (others - beaten).double()
    enough = free.clamp(min=chosen)

    def log_choose(count: Tensor) -> Tensor:
        return torch.lgamma(count + 1) - torch.lgamma(count - chosen + 1)

    chance = (log_choose(enough) - log_choose(torch.tensor(float(others)).double())).exp()
    return torch.where(free >= chosen, chance, 0.0)


def _extrapolated(first: float, last: float, half: int, most: int, new: int, slope: float) -> float:
    """The logit for `new` classes on the curve through `first` at `half` and `last` at `most`.

    The curve is c − slope · log(n + s): the seen classes count as s additional new classes. With
    s = 0 it is the line for new classes alone.
    """
    fall = first - last
    if fall <= 0 or slope <= 0:
        return last
    ratio = math.exp(fall / slope)
    if ratio >= most / half:
        return last - fall / math.log(most / half) * math.log(new / most)
    more = (most - ratio * half) / (ratio - 1)
    return last - slope * math.log((new + more) / (most + more))


def _logit(share: float, scores: ProxyScores) -> float:
    """log(share / (1 − share)), where 0 and 1 count as half an image from the end."""
    edge = 0.5 / max(len(scores.new_images), 1)
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _percent(logit: float) -> float:
    return 100 * _share(logit)
