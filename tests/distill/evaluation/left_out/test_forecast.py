"""The forecast for new classes: exact means over subsets, extrapolation, and honest intervals."""

import math
from itertools import combinations
from statistics import fmean

import pytest
import torch

from distill.evaluation.left_out.forecast import (
    ProxyScores,
    accuracies_among,
    forecast_points,
    numbers_of_classes,
    shortfall,
    student_t,
)

KEPT = 6


def make_cosines(classes, images=8, seed=0, spread=1.0, ease=1.0):
    """Cosines [images, KEPT + classes] and targets; classes are easier or harder by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    every = KEPT + classes
    targets = torch.arange(every).repeat_interleave(images)
    by_class = ease + spread * torch.randn(every, generator=generator)
    cosines = torch.randn(len(targets), every, generator=generator)
    cosines[torch.arange(len(targets)), targets] += by_class[targets]
    return cosines, targets


def scores_of(cosines, targets, new, bias=0.3):
    """The scores of a proxy where only the classes `new` were left out and the rest is gone."""
    columns = torch.cat([torch.arange(KEPT), torch.tensor(new)])
    place = torch.full((cosines.shape[1],), -1)
    place[columns] = torch.arange(len(columns))
    rows = place[targets] >= 0
    left_out = torch.arange(KEPT, len(columns))
    return ProxyScores.of(cosines[rows][:, columns], place[targets[rows]], left_out, bias)


def slow_accuracies(cosines, targets, new, bias=0.3):
    """Alone, joint on new and joint on seen images, by predicting each image."""
    new = list(new)
    scores = cosines.clone()
    scores[:, :KEPT] -= bias
    among = scores[:, list(range(KEPT)) + new]
    of_new = [i for i, target in enumerate(targets.tolist()) if target in new]
    of_kept = [i for i, target in enumerate(targets.tolist()) if target < KEPT]
    names = list(range(KEPT)) + new
    return (
        fmean(new[cosines[i, new].argmax()] == targets[i] for i in of_new),
        fmean(names[among[i].argmax()] == targets[i] for i in of_new),
        fmean(names[among[i].argmax()] == targets[i] for i in of_kept),
    )


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_accuracy_among_n_classes_is_the_mean_over_all_ways_to_choose_them(count):
    cosines, targets = make_cosines(6)
    every = range(KEPT, KEPT + 6)
    ways = [slow_accuracies(cosines, targets, new) for new in combinations(every, count)]
    found = accuracies_among(scores_of(cosines, targets, list(every)), count)
    expected = [fmean(column) for column in zip(*ways, strict=True)]
    assert [found.alone, found.joint_unseen, found.joint_seen] == pytest.approx(expected)


def test_more_classes_than_were_left_out_are_extrapolated_close_to_their_accuracy():
    cosines, targets = make_cosines(90, images=20, spread=0.3, ease=2.5)
    some = scores_of(cosines, targets, list(range(KEPT, KEPT + 30)), bias=1.0)
    every = scores_of(cosines, targets, list(range(KEPT, KEPT + 90)), bias=1.0)
    found, expected = accuracies_among(some, 90), accuracies_among(every, 90)
    assert found.alone < accuracies_among(some, 30).alone - 0.1
    for name in ("alone", "joint_unseen", "joint_seen"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.08)


def test_the_interval_covers_accuracies_of_other_classes_at_its_nominal_rate():
    inside = dict.fromkeys(("alone", "joint_unseen", "joint_seen"), 0)
    rounds = 60
    for seed in range(rounds):
        cosines, targets = make_cosines(24, seed=seed)
        first, second = range(KEPT, KEPT + 12), range(KEPT + 12, KEPT + 24)
        scores = scores_of(cosines, targets, list(first))
        (point,) = forecast_points(scores, [12], 0.0, float(scores.right.double().mean()))
        measured = accuracies_among(scores_of(cosines, targets, list(second)), 12)
        for name in inside:
            value = getattr(point, name)
            assert value.low <= value.value <= value.high
            inside[name] += value.low <= 100 * getattr(measured, name) <= value.high
    assert all(0.85 * rounds <= count for count in inside.values()), inside
    assert inside["alone"] < rounds  # an interval that covers everything is useless


def test_a_less_accurate_proxy_raises_only_the_value_and_the_upper_end():
    scores = scores_of(*make_cosines(12), list(range(KEPT, KEPT + 12)))
    (plain,), (lagging,) = (forecast_points(scores, [12], lag, 0.9) for lag in (0.0, 1.0))
    assert lagging.alone.low == plain.alone.low
    assert lagging.alone.value > plain.alone.value
    assert lagging.alone.high > plain.alone.high
    assert lagging.joint_seen == plain.joint_seen
    assert shortfall(0.5, 0.8) == pytest.approx(math.log(4))
    assert shortfall(0.8, 0.5) == 0


def test_classes_without_any_confusion_or_hit_have_intervals_too():
    for own in (10.0, -10.0):
        cosines, targets = make_cosines(5, spread=0.0)
        cosines[torch.arange(len(targets)), targets] += own
        scores = scores_of(cosines, targets, list(range(KEPT, KEPT + 5)))
        for point in forecast_points(scores, [2, 5, 50], 0.0, 0.9):
            assert 0 <= point.alone.low <= point.alone.high <= 100
            assert 0 <= point.joint_harmonic_mean.low <= point.joint_harmonic_mean.high <= 100


def test_numbers_of_classes_range_from_two_to_the_number_of_seen_classes():
    assert numbers_of_classes(36, [9, 15]) == (2, 5, 9, 10, 15, 20, 36)
    assert numbers_of_classes(8, [4]) == (2, 4, 5, 8)


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (8, 2.306), (29, 2.045)])
def test_the_quantile_is_that_of_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, rel=0.01)
