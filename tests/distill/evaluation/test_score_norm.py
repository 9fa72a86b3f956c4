"""Scores in units of what they are among training images, against their definition."""

import pytest
import torch
from torch.nn.functional import normalize

from distill.errors import DataError
from distill.evaluation.accuracy import predict
from distill.evaluation.score_norm import ScoreNorm


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(6) / 3


@pytest.fixture
def text() -> torch.Tensor:
    return normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=1)


def naive(training: torch.Tensor, features: torch.Tensor, text: torch.Tensor) -> list[list[float]]:
    """Each cosine less its mean over the training images, by their deviation; in float64."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.double(), b.double()
        return float(a.dot(b) / a.norm() / b.norm())

    rows = []
    for feature in features:
        row = []
        for class_text in text:
            known = [cosine(image, class_text) for image in training]
            mean = sum(known) / len(known)
            variance = sum((score - mean) ** 2 for score in known) / len(known)
            row.append((cosine(feature, class_text) - mean) / variance**0.5)
        rows.append(row)
    return rows


def test_scores_are_cosines_standardised_over_the_training_images(features, text):
    new = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    found = ScoreNorm.of(features).scores(new, text)

    torch.testing.assert_close(found, torch.tensor(naive(features, new, text)), atol=1e-4, rtol=0)


def test_over_the_training_images_each_class_has_mean_0_and_deviation_1(features, text):
    scores = ScoreNorm.of(features).scores(features, text)

    torch.testing.assert_close(scores.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std(dim=0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_neither_the_length_nor_the_order_of_features_matters(features, text):
    lengths = torch.rand(50, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    once = ScoreNorm.of(features).scores(features[:7], text)

    other = ScoreNorm.of((features * lengths).flip(0)).scores(features[:7] * 9, text)
    torch.testing.assert_close(once, other, atol=1e-4, rtol=0)


def test_a_class_whose_text_is_near_everything_does_not_win_by_that():
    # All images lie near the first text; the last ones a little nearer to the second than others.
    training = torch.tensor([[1.0, 0.1 + 0.01 * n] for n in range(10)])
    text, image = torch.eye(2), torch.tensor([[1.0, 0.5]])

    assert predict(image, text).item() == 0
    assert predict(image, text, ScoreNorm.of(training)).item() == 1


def test_constant_features_have_finite_scores():
    norm = ScoreNorm.of(torch.ones(3, 2))
    assert norm.scores(torch.eye(2), torch.eye(2)).isfinite().all()


def test_it_is_read_as_it_was_written(features, text, tmp_path):
    norm = ScoreNorm.of(features)
    norm.save(tmp_path / "norm.safetensors")

    loaded = ScoreNorm.load(tmp_path / "norm.safetensors")
    assert loaded.scores(features, text).equal(norm.scores(features, text))


def test_a_missing_a_damaged_or_a_wrong_file_is_a_one_line_error(features, tmp_path):
    path = tmp_path / "norm.safetensors"
    with pytest.raises(DataError, match="missing or damaged: train with --resume"):
        ScoreNorm.load(path)
    ScoreNorm.of(features).save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="missing or damaged"):
        ScoreNorm.load(path)


def test_a_folder_that_cannot_be_written_is_a_one_line_error(features, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot write .*norm.safetensors"):
        ScoreNorm.of(features).save(tmp_path / "file" / "norm.safetensors")
