"""The clutter benchmark at a size that shows that its parts fit together."""

import pytest

pytest.importorskip("torch")


from benchmarks.quality.clutter import (
    OBJECTS,
    SEEN,
    TEACHER,
    precisions,
    scenes,
    teacher_features,
    texts,
)
from distill.models.teacher import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(TEACHER)


@pytest.fixture(scope="module")
def text(teacher):
    return texts(teacher)


def test_scenes_to_learn_from_show_seen_charms_alone():
    pixels, shown = scenes(5, SEEN.nonzero()[:, 0].tolist(), seed=0)
    assert pixels.shape == (5, 2, 3, 64, 64)
    assert (shown.sum(dim=1) == OBJECTS).all()
    assert not shown[:, ~SEEN].any()


def test_the_teacher_finds_charms_on_a_cluttered_table(teacher, text):
    pixels, shown = scenes(60, list(range(len(SEEN))), seed=1)
    features = teacher_features(teacher, pixels)
    chance = 100 * OBJECTS / len(SEEN)
    assert all(found > 3 * chance for found in precisions(features, text, shown))
