"""The weight of a class's text relative to its photos, chosen on left-out classes."""

import pytest
import torch
from torch.nn.functional import normalize

from distill.evaluation.left_out.classes import LeftOut
from distill.evaluation.left_out.photo_weight import (
    CHOICES,
    DEFAULT,
    choose_text_photos,
    class_means,
    fuse,
)

CLASSES, IMAGES, DIM = 12, 20, 16
TARGETS = torch.arange(CLASSES).repeat_interleave(IMAGES)


def random_units(rows, generator):
    return normalize(torch.randn(rows, DIM, generator=generator), dim=1)


def left_out(text_noise, photo_noise):
    """Classes whose texts and photos lie about the same centres."""
    generator = torch.Generator().manual_seed(0)
    centres = random_units(CLASSES, generator)
    text = normalize(centres + text_noise * random_units(CLASSES, generator), dim=1)
    photos = centres[TARGETS] + photo_noise * random_units(len(TARGETS), generator)
    return LeftOut(torch.arange(CLASSES), normalize(photos, dim=1)), text


def test_an_uninformative_text_is_worth_few_photos_and_a_good_text_many():
    poor = choose_text_photos([left_out(20.0, 0.5)[0]], TARGETS, left_out(20.0, 0.5)[1])
    fold, text = left_out(0.0, 3.0)
    good = choose_text_photos([fold], TARGETS, text)
    assert poor < 1 < good
    assert {poor, good} <= set(CHOICES)


def test_without_a_second_photo_the_default_is_taken():
    single = LeftOut(torch.arange(3), torch.eye(3))
    assert choose_text_photos([single], torch.arange(3), torch.eye(3)) == DEFAULT
    assert choose_text_photos([], TARGETS, torch.eye(3)) == DEFAULT


def test_text_and_photos_are_fused_by_their_weights():
    text, means = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    fused = fuse(text, means, 3, 4.0)
    assert fused[0].tolist() == pytest.approx([0.8, 0.6])


def test_the_mean_of_a_class_is_that_of_unit_features():
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, -1.0]])
    means = class_means(features, torch.tensor([0, 0, 1]), 2)
    assert means.flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.0, -1.0])
