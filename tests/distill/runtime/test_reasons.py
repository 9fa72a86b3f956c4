"""Why a photo got its class: attributes that lie clearly above what they do on other photos."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.splits import scan_split
from distill.embeddings.attributes import attributes_of
from distill.errors import ClassifierError
from distill.runtime import Classifier
from distill.runtime.photo_class import PhotoStatistics
from distill.runtime.reasons import CLEAR

OKAPI = "a horse-like animal with striped legs, and a long dark tongue. It has large ears."


@pytest.fixture(scope="module")
def classifier(exported_charms) -> Classifier:
    """Shared: tests that change classes load their own."""
    return Classifier.load(exported_charms.folder)


@pytest.fixture(scope="module")
def photos(charm_world):
    return scan_split(charm_world, "seen").paths


def test_an_attribute_supports_a_class_if_it_is_clearly_above_its_mean_over_other_photos(
    classifier, photos
):
    """Checked against the cosines with the photos behind the statistics."""
    seen = classifier.encode(photos)
    cosines = seen @ classifier.attributes.T
    standard = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)
    texts = [text for entry in classifier.classes for text in entry.attributes]
    owners = [entry.key for entry in classifier.classes for _ in entry.attributes]
    for row, prediction in enumerate(classifier.classify(photos, 1, reasons=True)):
        assert prediction.reasons is not None
        expected = {
            text: value
            for text, value, owner in zip(texts, standard[row], owners, strict=True)
            if owner == prediction.best.key
        }
        found = {reason.text: reason.evidence for reason in prediction.reasons.attributes}
        assert found == pytest.approx(expected, abs=1e-2)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        for reason in prediction.reasons.attributes:
            assert reason.supports == (reason.evidence > CLEAR)


def test_differences_from_the_runner_up_are_attributes_of_one_class_only(classifier, photos):
    attributes = {entry.key: entry.attributes for entry in classifier.classes}
    for prediction in classifier.classify(photos[:20], 2, reasons=True):
        best, second = prediction.candidates
        assert prediction.reasons.runner_up == second.key
        assert prediction.reasons.differences
        for reason in prediction.reasons.differences:
            other = second.key if reason.key == best.key else best.key
            assert reason.text in attributes[reason.key]
            assert reason.text not in attributes[other]
            assert reason.difference > 0


def test_reasons_do_not_change_the_classes_and_cost_nothing_unless_asked_for(classifier, photos):
    plain = classifier.classify(photos[:5])
    explained = classifier.classify(photos[:5], reasons=True)
    assert [x.candidates for x in explained] == [x.candidates for x in plain]
    assert {x.reasons for x in plain} == {None}


def test_the_runner_up_is_given_where_only_one_class_is_shown(classifier, photos):
    (top1,) = classifier.classify(photos[:1], 1, reasons=True)
    (top2,) = classifier.classify(photos[:1], 2, reasons=True)
    assert top1.reasons == top2.reasons
    (alone,) = classifier.classify(photos[:1], among=[top2.best.key], reasons=True)
    assert (alone.reasons.runner_up, alone.reasons.differences) == (None, ())
    assert alone.reasons.attributes == top2.reasons.attributes


def test_a_class_that_is_added_brings_its_reasons_and_keeps_them(classifier_folder, photos):
    classifier = Classifier.load(classifier_folder)
    first = classifier.classes[0]
    (before,) = classifier.classify(photos[:1], among=[first.key], reasons=True)
    second = classifier.classes[1]
    classifier.remove(second.key)
    added = classifier.add("okapi", OKAPI)
    assert added.attributes == (
        "a horse-like animal with striped legs", "a long dark tongue", "It has large ears",
    )  # fmt: skip
    count = sum(len(entry.attributes) for entry in classifier.classes)
    assert len(classifier.attributes) == count
    (okapi,) = classifier.classify(photos[:1], among=["okapi", first.key], reasons=True)
    classifier.save()
    again = Classifier.load(classifier_folder)
    assert again.classify(photos[:1], among=["okapi", first.key], reasons=True) == [okapi]
    assert again.classify(photos[:1], among=[first.key], reasons=True) == [before]
    (named,) = again.classify(photos[:1], among=["okapi"], reasons=True)
    assert {reason.text for reason in named.reasons.attributes} == set(added.attributes)


def test_the_export_stores_what_adding_the_class_again_computes(
    classifier_folder, finished_charm_run
):
    classifier = Classifier.load(classifier_folder)
    label = finished_charm_run.release.labels[-1]
    assert attributes_of(label)[0].startswith("shape: ")
    (entry,) = (entry for entry in classifier.classes if entry.key == label.key)
    stored = classifier.attributes[-len(entry.attributes) :]
    assert entry.attributes == attributes_of(label)
    encoded = finished_charm_run.teacher.encode_text(list(entry.attributes)).numpy()
    assert (stored * encoded).sum(axis=1).min() > 1 - 1e-5


def without_attributes(folder):
    """The classifier in `folder` as one whose release has names alone."""
    classifier = Classifier.load(folder)
    classes = tuple(x.model_copy(update={"attributes": ()}) for x in classifier.classes)
    classifier.manifest = classifier.manifest.model_copy(update={"classes": classes})
    classifier.attributes = classifier.attributes[:0]
    classifier.save()


def predict(folder, *arguments):
    words = ["predict", str(folder), *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_without_texts_there_are_predictions_without_reasons_and_a_note(classifier_folder, photos):
    without_attributes(classifier_folder)
    classifier = Classifier.load(classifier_folder)
    assert not classifier.has_reasons
    (prediction,) = classifier.classify(photos[:1], reasons=True)
    assert prediction.reasons is None
    done = predict(classifier_folder, photos[0], "--why", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["photos"][0]["reasons"] is None
    assert done.stderr.count("\n") == 1
    assert "has no class attributes, so predictions have no reasons" in done.stderr


def test_the_command_prints_reasons_as_a_table_json_and_html(exported_charms, photos, tmp_path):
    folder, sheet = exported_charms.folder, tmp_path / "sheet.html"
    predictions = Classifier.load(folder).classify(photos, reasons=True)
    supported = [
        (path, prediction.reasons)
        for path, prediction in zip(photos, predictions, strict=True)
        if any(reason.supports for reason in prediction.reasons.attributes)
    ]
    photo, reasons = supported[0]
    document = json.loads(predict(folder, photo, "--why", "--json").stdout)
    found = document["photos"][0]["reasons"]
    assert found["runner_up"] == reasons.runner_up
    assert [x["text"] for x in found["attributes"]] == [x.text for x in reasons.attributes]

    table = predict(folder, photo, "--why", "--html", sheet).stdout
    assert "supporting attributes" in table
    assert "supporting attributes" not in predict(folder, photo).stdout
    first = reasons.attributes[0]
    assert f"{first.text} ({first.evidence:+.1f})" in sheet.read_text()
    apart = reasons.differences[0]
    assert f"{apart.text} ({apart.name}, {apart.evidence:+.1f})" in sheet.read_text()


def test_reasons_do_not_go_into_csv(exported_charms, photos):
    done = predict(exported_charms.folder, photos[0], "--why", "--csv")
    assert done.exit_code == 1
    assert done.stderr == (
        "distill: --csv cannot be combined with --json or --why: leave one of them out\n"
    )


def test_attribute_features_that_do_not_fit_are_refused(classifier_folder):
    classifier = Classifier.load(classifier_folder)
    classifier.attributes = classifier.attributes[1:]
    classifier.save()
    with pytest.raises(ClassifierError, match=r"does not fit classifier\.json"):
        Classifier.load(classifier_folder)


def test_evidence_is_finite_where_all_photos_look_the_same():
    same = np.tile(np.eye(1, 4, dtype=np.float32), (5, 1))
    statistics = PhotoStatistics.of(same)
    assert np.isfinite(statistics.evidence(same[0], np.eye(4, dtype=np.float32))).all()
