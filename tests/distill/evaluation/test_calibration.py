"""Temperatures, calibration errors and thresholds, compared with slow computations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from distill.evaluation.calibration import (
    auroc,
    cross_fitted_error,
    cross_fitted_reliability,
    expected_calibration_error,
    false_positive_rate,
    fit_temperature,
    reliability,
    threshold_at,
)

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12).map(torch.tensor)


def sampled(temperature: float, images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose softmax at `temperature` is the true distribution of the targets."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(images, 7, generator=generator)
    probabilities = torch.softmax(scores / temperature, dim=1)
    return scores, torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def test_the_bins_of_a_reliability_diagram_give_the_calibration_error():
    scores, targets = sampled(0.2)
    probabilities = torch.softmax(scores / 0.05, dim=1)
    for bins, error in (
        (reliability(probabilities, targets), expected_calibration_error(probabilities, targets)),
        (cross_fitted_reliability(scores, targets), cross_fitted_error(scores, targets)),
    ):
        assert sum(bin_.images for bin_ in bins) == len(targets)
        gaps = sum(bin_.images * abs(bin_.confidence - bin_.accuracy) for bin_ in bins)
        assert 100 * gaps / len(targets) == pytest.approx(error)


def test_the_temperature_is_the_likeliest_of_a_fine_grid():
    scores, targets = sampled(0.2, 300)
    grid = torch.logspace(-2, 0, 400).tolist()
    best = min(grid, key=lambda each: cross_entropy(scores.double() / each, targets))
    assert fit_temperature(scores, targets) == pytest.approx(best, rel=0.02)


def test_the_temperature_that_made_the_targets_is_found_and_calibrates():
    scores, targets = sampled(0.1)
    temperature = fit_temperature(scores, targets)
    assert temperature == pytest.approx(0.1, rel=0.1)
    fitted = torch.softmax(scores / temperature, dim=1)
    assert expected_calibration_error(fitted, targets) < 3
    assert expected_calibration_error(torch.softmax(scores / 0.01, dim=1), targets) > 20
    assert cross_fitted_error(scores, targets) < 3


def test_images_that_are_all_right_or_all_wrong_give_an_end_of_the_range():
    scores = torch.eye(3)
    assert fit_temperature(scores, torch.arange(3)) == pytest.approx(1e-4, rel=1e-3)
    assert fit_temperature(scores, torch.tensor([1, 2, 0])) == pytest.approx(10, rel=1e-3)


def test_the_calibration_error_is_the_mean_gap_over_bins():
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.softmax(3 * torch.randn(200, 4, generator=generator), dim=1).double()
    targets = torch.randint(4, (200,), generator=generator)
    confidence, best = probabilities.max(dim=1)
    expected = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            right = (best == targets)[inside].double().mean()
            expected += float(inside.double().mean() * (confidence[inside].mean() - right).abs())
    assert expected_calibration_error(probabilities, targets, bins=10) == pytest.approx(
        100 * expected
    )


@given(SCORES, SCORES)
def test_auroc_counts_the_pairs_in_order(known, unknown):
    pairs = [(a > b) + (a == b) / 2 for a in known.tolist() for b in unknown.tolist()]
    assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs))


@given(SCORES, SCORES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
@settings(max_examples=50)
def test_a_threshold_lets_the_share_of_known_images_pass_and_no_higher_one_does(
    known, unknown, share
):
    threshold = threshold_at(known, share)
    assert (known >= threshold).double().mean() >= share - 1e-9
    for higher in known[known > threshold].tolist():
        assert (known >= higher).double().mean() < share
    passed = sum(score >= threshold for score in unknown.tolist())
    assert false_positive_rate(known, unknown, share) == pytest.approx(100 * passed / len(unknown))
