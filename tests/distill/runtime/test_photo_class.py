"""Classes that are described by photos besides their text."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from distill.cli.main import app
from distill.errors import ClassifierError
from distill.runtime import Classifier
from distill.runtime.photo_class import PhotoStatistics

TEXT = "a small shiny thing"


def units(rows, seed):
    drawn = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_seen_photos_score_with_a_mixed_class_as_they_do_with_its_text():
    seen, text, photos = units(200, 0), units(1, 1)[0], units(3, 2)
    row, offset = PhotoStatistics.of(seen).mix(text, photos, 1.5)
    by_text, mixed = seen @ text, seen @ row + offset
    assert mixed.mean() == pytest.approx(by_text.mean(), abs=1e-5)
    assert mixed.std() == pytest.approx(by_text.std(), abs=1e-5)
    mean = photos.mean(axis=0)
    wanted = 1.5 * text + 3 * mean / np.linalg.norm(mean)
    assert row @ wanted == pytest.approx(np.linalg.norm(row) * np.linalg.norm(wanted), rel=1e-5)


@pytest.fixture
def unseen(charm_world):
    return sorted((charm_world / "val").iterdir())[0]


def test_photos_of_a_class_change_its_scores_and_are_kept(classifier_folder, unseen):
    classifier = Classifier.load(classifier_folder)
    photos = sorted(unseen.iterdir())
    (before,) = classifier.classify(photos[:1], 1, among=[unseen.name])
    entry = classifier.add_photos(unseen.name, photos[:3])
    (after,) = classifier.classify(photos[:1], 1, among=[unseen.name])
    assert (entry.photos, entry.offset != 0) == (3, True)
    assert after.best.cosine > before.best.cosine
    classifier.save()
    again = Classifier.load(classifier_folder).classify(photos[:1], 1, among=[unseen.name])
    assert again[0].best.cosine == after.best.cosine
    with pytest.raises(ClassifierError, match="has 3 photos already"):
        classifier.add_photos(unseen.name, photos[3:])


def predict(*words):
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def test_a_new_class_is_described_by_a_text_and_a_folder_of_photos(classifier_folder, unseen):
    photo = sorted(unseen.iterdir())[-1]
    words = ("--add", f"trinket={TEXT}", "--examples", f"trinket={unseen}", "--top", 60, "--json")
    done = predict(classifier_folder, photo, *words)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"trinket: {len(list(unseen.iterdir()))} example photos\n"
    pattern = ("--add", f"trinket={TEXT}", "--examples", f"trinket={unseen}/*0.*")
    assert predict(classifier_folder, photo, *pattern).stderr == "trinket: 1 example photo\n"
    without = predict(classifier_folder, photo, "--add", f"trinket={TEXT}", "--top", 60, "--json")

    def probability(result):
        (found,) = json.loads(result.stdout)["photos"]
        return next(c["probability"] for c in found["candidates"] if c["name"] == "trinket")

    assert probability(done) > probability(without)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trinket", 'names no photos: write "NAME=PATH" with a folder, a file or a pattern'),
        (
            "charm00=nowhere",
            'names no photos: write "NAME=PATH" with a folder, a file or a pattern',
        ),
        ("charm00=", 'names no photos: write "NAME=PATH" with a folder, a file or a pattern'),
        ("charm00=-", 'names no photos: write "NAME=PATH" with a folder, a file or a pattern'),
        (f"charm00={'many words ' * 40}", "names no photos"),
        ("charm00={folder}/*.txt", "/*.txt has no image"),
        ("trinket={folder}", "the classifier has no class 'trinket'"),
    ],
)
def test_unusable_examples_are_a_one_line_error(classifier_folder, unseen, argument, message):
    photo = sorted(unseen.iterdir())[0]
    done = predict(classifier_folder, photo, "--examples", argument.format(folder=unseen))
    assert done.exit_code == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
