"""Joint accuracy of seen and unseen classes, compared with a loop over images and biases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.joint import Joint, ausuc, best_point, outcomes

IS_SEEN = torch.tensor([True, True, False, True, False])


def drawn(seed: int, images: int = 30) -> tuple[torch.Tensor, ...]:
    """Scores of seen images and of unseen ones, with their targets; some scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randint(0, 12, (images, 5), generator=generator) / 10
    unseen = torch.randint(0, 12, (images, 5), generator=generator) / 10
    places = torch.arange(5)
    seen_targets = places[IS_SEEN][torch.randint(3, (images,), generator=generator)]
    unseen_targets = places[~IS_SEEN][torch.randint(2, (images,), generator=generator)]
    return seen, seen_targets, unseen, unseen_targets


def slow_accuracy(scores: torch.Tensor, targets: torch.Tensor, bias: float) -> float:
    """Image by image: the class with the largest score less the bias, seen classes first."""
    right = 0
    for row, target in zip(scores.double().tolist(), targets.tolist(), strict=True):
        order = sorted(
            range(5), key=lambda c: (-(row[c] - bias * IS_SEEN[c].item()), not IS_SEEN[c], c)
        )
        right += order[0] == target
    return 100 * right / len(targets)


@given(st.integers(0, 1000), st.sampled_from([-2.0, -0.35, 0.0, 0.25, 0.55, 2.0]))
def test_a_point_equals_a_count_in_a_loop_over_the_images(seed, bias):
    seen, seen_targets, unseen, unseen_targets = drawn(seed)
    point = outcomes(seen, seen_targets, unseen, unseen_targets, IS_SEEN).at(bias)
    assert point.seen == pytest.approx(slow_accuracy(seen, seen_targets, bias))
    assert point.unseen == pytest.approx(slow_accuracy(unseen, unseen_targets, bias))


@given(st.integers(0, 1000))
def test_the_curve_is_every_point_that_a_bias_can_reach(seed):
    decided = outcomes(*drawn(seed), IS_SEEN)
    curve = decided.curve()
    for point in curve:
        same = decided.at(point.bias)
        assert (point.seen, point.unseen) == pytest.approx((same.seen, same.unseen))
    reached = {(round(p.seen, 6), round(p.unseen, 6)) for p in curve}
    for bias in torch.linspace(-1.5, 1.5, 61).add(0.013).tolist():
        point = decided.at(bias)
        assert (round(point.seen, 6), round(point.unseen, 6)) in reached
    assert best_point(curve).harmonic_mean == max(p.harmonic_mean for p in curve)
    assert curve[0].unseen == curve[-1].seen == 0


def test_the_area_is_that_below_the_curve():
    # 100 % seen alone, 80 % unseen alone; half of the way both.
    curve = [Joint(100, 0, -1), Joint(50, 40, 0), Joint(0, 80, 1)]
    assert ausuc(curve) == pytest.approx(0.4)
    perfect = [Joint(100, 0, -1), Joint(100, 100, 0), Joint(0, 100, 1)]
    assert ausuc(perfect) == pytest.approx(1)


def test_the_harmonic_mean_needs_both():
    assert Joint(80, 20, 0).harmonic_mean == pytest.approx(32)
    assert Joint(80, 0, 0).harmonic_mean == 0
    assert Joint(0, 0, 0).harmonic_mean == 0
