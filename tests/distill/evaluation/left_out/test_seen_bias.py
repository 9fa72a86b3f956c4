"""The bias against seen classes is chosen on seen images, and comes near the best one."""

import pytest
import torch
from torch.nn.functional import normalize

from distill.evaluation.joint import best_point, outcomes
from distill.evaluation.left_out.classes import RIDGE, SeenImages, fit_without, leave_out
from distill.evaluation.left_out.seen_bias import choose_seen_bias

SEEN, UNSEEN, DIM, WIDTH = 24, 12, 16, 24


def images(classes: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """What a backbone sees of `count` images of each class: its text, turned and blurred."""
    turn = torch.randn(DIM, WIDTH, generator=torch.Generator().manual_seed(7)) / DIM**0.5
    blur = torch.randn(len(classes) * count, WIDTH, generator=generator)
    return classes.repeat_interleave(count, dim=0) @ turn + 0.2 * blur


def fit_layer(features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The slow way: least squares, with a row of input for each weight's penalty."""
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    width = inputs.shape[1]
    root = (RIDGE * inputs.square().sum(dim=0).mean()).sqrt() * torch.eye(width).double()
    padded = torch.cat([wanted.double(), torch.zeros(width, wanted.shape[1]).double()])
    return torch.linalg.lstsq(torch.cat([inputs, root]), padded).solution


@pytest.mark.parametrize("seed", range(4))
def test_the_bias_is_close_to_that_chosen_on_unseen_images(seed):
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(SEEN + UNSEEN, DIM, generator=generator), dim=1)
    seen, unseen = text[:SEEN], text[SEEN:]
    targets = torch.arange(SEEN).repeat_interleave(20)
    train, validation = images(seen, 20, generator), images(seen, 20, generator)
    layer = fit_layer(train, seen[targets])

    def encode(features):
        ones = torch.ones(len(features), 1)
        return normalize(torch.cat([features, ones], dim=1).double() @ layer, dim=1).float()

    folds = leave_out(SeenImages(train, targets), SeenImages(validation, targets), seen, UNSEEN)
    bias = choose_seen_bias(folds, targets, encode(validation) @ seen.T, seen)
    decided = outcomes(
        encode(validation) @ text.T,
        targets,
        encode(images(unseen, 20, generator)) @ text.T,
        SEEN + torch.arange(UNSEEN).repeat_interleave(20),
        torch.arange(SEEN + UNSEEN) < SEEN,
    )
    best = best_point(decided.curve()).harmonic_mean
    assert bias > 0
    assert decided.at(bias).harmonic_mean > decided.at(0).harmonic_mean
    assert decided.at(bias).harmonic_mean >= 0.9 * best


def test_each_layer_is_the_least_squares_fit_without_the_left_out_classes():
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(SEEN, DIM, generator=generator), dim=1)
    targets = torch.arange(SEEN).repeat_interleave(20)
    train = SeenImages(images(text, 20, generator), targets)
    folds = torch.randperm(SEEN, generator=generator).split(5)
    layers = list(fit_without(train, text, folds))
    assert len(layers) == len(folds)
    for left_out, layer in zip(folds, layers, strict=True):
        kept = ~torch.isin(targets, left_out)
        expected = fit_layer(train.features[kept], text[targets[kept]])
        torch.testing.assert_close(layer, expected, rtol=0, atol=1e-9)


def test_where_nothing_can_be_left_out_there_is_no_bias():
    few = SeenImages(torch.randn(6, 4), torch.arange(3).repeat(2))
    assert leave_out(few, few, torch.eye(3, 4), unseen=2) == ()
    many = SeenImages(torch.randn(8, 4), torch.arange(4).repeat(2))
    assert leave_out(many, many, torch.eye(4), unseen=0) == ()
    assert choose_seen_bias((), few.targets, torch.eye(3).repeat(2, 1), torch.eye(3, 4)) == 0
