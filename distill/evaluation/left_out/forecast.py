"""How well classes that come later will be recognised, measured on seen classes that were left out.

A rehearsal is a student that was trained without some of the seen classes. To it, they are what
unseen classes are to the student. From its scores follow the accuracies among n new classes.

Notable:
- Classes are the unit of chance, not images: another set of new classes is easier or harder as a
  whole. The interval follows from how much the left-out classes differ. It covers both that few
  classes were left out and that the n new ones are a sample.
- The rehearsal lags behind the student, since its training is shorter and has fewer classes. On
  classes that both were trained on the difference is known (`shortfall`); on new ones it is
  smaller. A quarter of it is added, and the interval reaches from none of it to half.
- The accuracy among n classes is the exact mean over all ways to choose them, not a simulation.
- Beyond the left-out classes the curve is extrapolated: the logit of the accuracy falls linearly
  with log n. Where seen classes compete too, they count as so many more new classes. Half of the
  extrapolated change is added to the error.
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
SHARE_OF_SHORTFALL: Final = 0.25  # on the demo, new classes gained 0.22 of it
STEPS: Final = (2, 5, 10)  # numbers of new classes, in each power of ten


@dataclass(frozen=True)
class RehearsalScores:
    """What decides each validation image in a rehearsal, whose left-out classes are its new ones.

    `new_images` [images, left out] and `kept_images` [images, left out] tell which left-out classes
    beat the image's own class; `new_targets` is the own class of an image of a left-out class.
    `beats_kept` and `right` tell whether the own class beats all kept classes (all other ones).
    """

    new_images: Tensor  # bool
    new_targets: Tensor
    beats_kept: Tensor  # bool, of the images of left-out classes
    kept_images: Tensor  # bool
    right: Tensor  # bool, of the images of kept classes

    @classmethod
    def of(
        cls, cosines: Tensor, targets: Tensor, left_out: Tensor, seen_bias: float
    ) -> "RehearsalScores":
        """From `cosines` [images, seen classes], which `targets` index; `left_out` are classes.

        `seen_bias` is taken from the cosines of kept classes.
        """
        scores = cosines.double().clone()
        is_new = torch.isin(torch.arange(scores.shape[1]), left_out)
        scores[:, ~is_new] -= seen_bias
        own = scores.gather(1, targets[:, None])
        of_new = is_new[targets]
        beaten_by_new = scores[:, left_out] > own
        best_kept = scores[:, ~is_new].max(dim=1, keepdim=True).values
        place = torch.full((scores.shape[1],), -1)
        place[left_out] = torch.arange(len(left_out))
        return cls(
            new_images=beaten_by_new[of_new],
            new_targets=place[targets[of_new]],
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
    """Shares of images that are right, 0 to 1, with n new classes; or a figure for each of them."""

    alone: float  # of new classes, among them
    joint_unseen: float  # of new classes, among all
    joint_seen: float  # of seen classes, among all


def numbers_of_classes(seen: int, others: Iterable[int]) -> tuple[int, ...]:
    """The numbers of new classes to forecast for: 2, 5, 10, 20 … up to `seen`, and `others`."""
    series = (step * 10**power for power in range(7) for step in STEPS)
    return tuple(sorted({*(number for number in series if number <= seen), seen, *others}))


def forecast_points(
    scores: RehearsalScores, numbers: Iterable[int], shortfall: float, seen_accuracy: float
) -> tuple[ForecastPoint, ...]:
    """The expected accuracies with each of `numbers` of new classes.

    `shortfall` is by how much the rehearsal lags behind the student, in the logit; `seen_accuracy`
    the student's share of right validation images among all seen classes, 0 to 1.
    """
    return tuple(_point(scores, number, shortfall, seen_accuracy) for number in numbers)


def shortfall(rehearsal: float, student: float) -> float:
    """By how much the rehearsal lags behind the student in the logit, never less than 0.

    Both are shares of the same images of kept classes, 0 to 1.
    """
    edge = 1e-3
    odds = [min(max(share, edge), 1 - edge) for share in (rehearsal, student)]
    lagging, ahead = (math.log(share / (1 - share)) for share in odds)
    return max(0.0, ahead - lagging)


def forecast_line(forecast: Forecast) -> str:
    """One line for people: what to expect of as many new classes as were left out."""
    point = next(point for point in forecast.points if point.classes == forecast.left_out)
    alone, joint = point.alone, point.joint_unseen
    return (
        f"forecast for {point.classes} classes that come later: {alone.value:.0f} % of their "
        f"images right among them ({alone.low:.0f} to {alone.high:.0f}), {joint.value:.0f} % among "
        f"all classes ({joint.low:.0f} to {joint.high:.0f})"
    )


def _point(
    scores: RehearsalScores, new: int, shortfall: float, seen_accuracy: float
) -> ForecastPoint:
    expected, errors = accuracies_among(scores, new), _standard_errors(scores, new)
    quantile, likely = student_t(scores.left_out - 1), SHARE_OF_SHORTFALL * shortfall

    def value(share: float, error: float, added: float) -> ForecastValue:
        logit, half = _logit(share, scores), quantile * error
        ends = (logit + added, logit - half, logit + 2 * added + half)
        return ForecastValue(
            **dict(zip(("value", "low", "high"), map(_percent, ends), strict=True))
        )

    # More seen classes compete in the student: what new ones leave of its own accuracy is taken.
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
    """H of two independent values, to first order."""
    total = seen.value + unseen.value or 1.0
    by_seen, by_unseen = (2 * (other.value / total) ** 2 for other in (unseen, seen))
    mean = 2 * seen.value * unseen.value / total
    below = math.hypot(by_seen * (seen.value - seen.low), by_unseen * (unseen.value - unseen.low))
    above = math.hypot(by_seen * (seen.high - seen.value), by_unseen * (unseen.high - unseen.value))
    return ForecastValue(value=mean, low=max(0.0, mean - below), high=min(100.0, mean + above))


def _standard_errors(scores: RehearsalScores, new: int) -> Accuracies:
    """Errors of the logits, from the choice of classes (left-out and new) and extrapolation."""
    most = scores.left_out
    both = math.sqrt(1 / most + 1 / new)
    measured, expected = accuracies_among(scores, min(new, most)), accuracies_among(scores, new)
    unbeaten = _chance_unbeaten(scores.new_images.sum(dim=1), most - 1, min(new, most) - 1)
    images = torch.bincount(scores.new_targets, minlength=most)

    def of_classes(hits: Tensor, mean: float) -> float:
        by_class = torch.bincount(scores.new_targets, weights=hits, minlength=most) / images
        return float(by_class.std()) * both / _slope(mean, scores)

    # The images that n new classes take from seen ones are in proportion to what each takes.
    taken = (scores.kept_images & scores.right[:, None]).double().mean(dim=0)
    right, found = float(scores.right.double().mean()), _share(_logit(expected.joint_seen, scores))
    lost = max(0.0, math.log(right / found)) if right else 0.0
    spread = float(taken.std() / taken.mean()) * both if taken.any() else 0.0

    def with_extrapolation(name: str, error: float) -> float:
        change = _logit(getattr(measured, name), scores) - _logit(getattr(expected, name), scores)
        return math.hypot(error, change / 2)

    return Accuracies(
        alone=with_extrapolation("alone", of_classes(unbeaten, measured.alone)),
        joint_unseen=with_extrapolation(
            "joint_unseen", of_classes(unbeaten * scores.beats_kept, measured.joint_unseen)
        ),
        joint_seen=with_extrapolation("joint_seen", lost * spread / (1 - found)),
    )


def _slope(share: float, scores: RehearsalScores) -> float:
    """The derivative of the share by its logit; of a share that is 0 or 1 as in `_logit`."""
    inside = _share(_logit(share, scores))
    return inside * (1 - inside)


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, to 1 % from three degrees of freedom on.

    By the expansion around the normal quantile (Abramowitz & Stegun, 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def accuracies_among(scores: RehearsalScores, new: int) -> Accuracies:
    """The accuracies with `new` new classes, extrapolated where fewer were left out."""
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


def _measured(scores: RehearsalScores, new: int) -> Accuracies:
    """Means over all ways to choose `new` of the left-out classes."""
    most = scores.left_out
    alone = _chance_unbeaten(scores.new_images.sum(dim=1), most - 1, new - 1)
    among_kept = _chance_unbeaten(scores.kept_images.sum(dim=1), most, new)
    return Accuracies(
        alone=float(alone.mean()),
        joint_unseen=float((alone * scores.beats_kept).mean()),
        joint_seen=float((among_kept * scores.right).mean()),
    )


def _chance_unbeaten(beaten: Tensor, others: int, chosen: int) -> Tensor:
    """The chance [images] that none of the `beaten` stronger classes is among the `chosen` ones of
    `others`, float64: C(others − beaten, chosen) / C(others, chosen).
    """
    free = (others - beaten).double()
    enough = free.clamp(min=chosen)

    def log_choose(count: Tensor) -> Tensor:
        return torch.lgamma(count + 1) - torch.lgamma(count - chosen + 1)

    chance = (log_choose(enough) - log_choose(torch.tensor(float(others)).double())).exp()
    return torch.where(free >= chosen, chance, 0.0)


def _extrapolated(first: float, last: float, half: int, most: int, new: int, slope: float) -> float:
    """The logit with `new` classes, of a curve through `first` at `half` and `last` at `most`.

    The curve is c − slope · log(n + s), where the seen classes count as s more new ones. With
    s = 0 it is the line of new classes alone.
    """
    fall = first - last
    if fall <= 0 or slope <= 0:
        return last
    ratio = math.exp(fall / slope)
    if ratio >= most / half:
        return last - fall / math.log(most / half) * math.log(new / most)
    more = (most - ratio * half) / (ratio - 1)
    return last - slope * math.log((new + more) / (most + more))


def _logit(share: float, scores: RehearsalScores) -> float:
    """log(share / (1 − share)), of a share that is 0 or 1 as of half an image."""
    edge = 0.5 / max(len(scores.new_images), 1)
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _percent(logit: float) -> float:
    return 100 * _share(logit)
