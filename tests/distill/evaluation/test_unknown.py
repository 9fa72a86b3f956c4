"""Scores for unknown images, compared with a slow and obvious computation of each."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from distill.evaluation.score_norm import ScoreNorm
from distill.evaluation.unknown import Scorer, compare_scores, rejected

GENERATOR = torch.Generator().manual_seed(0)
TEXT = normalize(torch.randn(3, 6, generator=GENERATOR), dim=1)
LOOK_ALIKES = normalize(torch.randn(2, 6, generator=GENERATOR), dim=1)
IMAGES = torch.randn(20, 6, generator=GENERATOR) * 3
TRAIN = torch.randn(300, 6, generator=GENERATOR)
NORM = ScoreNorm.of(TRAIN)
TEMPERATURE = 0.2


def cosines(image, texts):
    return [float(torch.nn.functional.cosine_similarity(image, text, dim=0)) for text in texts]


def test_each_score_equals_its_definition():
    found = Scorer(TEXT, TEMPERATURE, NORM, LOOK_ALIKES).scores(IMAGES)
    train = normalize(TRAIN, dim=1) @ TEXT.T
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    for row, image in enumerate(IMAGES):
        own, others = cosines(image, TEXT), cosines(image, LOOK_ALIKES)
        exps = [math.exp(value / TEMPERATURE) for value in (*own, *others)]
        expected = {
            "cosine": max(own),
            "softmax": max(exps[:3]) / sum(exps[:3]),
            "normalised": max(
                (value - m) / d
                for value, m, d in zip(own, mean.tolist(), deviation.tolist(), strict=True)
            ),
            "cosine, look-alikes": max(own) - max(others),
            "softmax, look-alikes": max(exps[:3]) / sum(exps),
        }
        scores = {name: float(values[row]) for name, values in found.items()}
        assert scores == pytest.approx(expected, abs=1e-3)


def test_without_look_alikes_there_are_three_scores():
    rows = compare_scores(Scorer(TEXT, TEMPERATURE, NORM), IMAGES[:10], IMAGES[10:])
    assert [row.score for row in rows] == ["cosine", "softmax", "normalised"]


def test_look_alikes_separate_their_images_from_seen_ones():
    noise = 0.1 * torch.randn(2, 50, 6, generator=GENERATOR)
    seen = TEXT[torch.arange(50) % 3] + noise[0]
    unseen = LOOK_ALIKES[torch.arange(50) % 2] + noise[1]
    rows = {
        row.score: row
        for row in compare_scores(Scorer(TEXT, TEMPERATURE, NORM, LOOK_ALIKES), seen, unseen)
    }
    assert rows["cosine, look-alikes"].auroc > 0.99 > rows["softmax"].auroc
    assert rows["cosine, look-alikes"].fpr_at_95_tpr < 5
    assert (rejected(seen, TEXT, LOOK_ALIKES), rejected(unseen, TEXT, LOOK_ALIKES)) == (0, 100)
