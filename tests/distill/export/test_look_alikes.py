"""Look-alikes: an image that is more like one of them than like any class is of no class."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from contract import Release
from distill.cli.main import app
from distill.data.splits import scan_split
from distill.embeddings.look_alikes import look_alikes_of, read_look_alikes
from distill.errors import ClassifierError, TextError
from distill.export.classifier_folder import ExportOptions, export_run
from distill.runtime import Classifier

NAMES = ("emerald beetle", "lemon drop", "striped sock")


@pytest.fixture(scope="module")
def exported(finished_charm_run, charm_world):
    """Another classifier folder of the run, with look-alikes."""
    return export_run(
        finished_charm_run,
        charm_world / "with-look-alikes",
        options=ExportOptions(look_alikes=NAMES),
        cache=charm_world / "cache",
        progress=lambda *_: None,
    )


@pytest.fixture
def classifier(exported):
    return Classifier.load(exported.folder)


@pytest.fixture(scope="module")
def photos(charm_world):
    return scan_split(charm_world, "unseen").paths[::5]


def test_their_features_are_the_teachers(classifier, finished_charm_run):
    assert classifier.manifest.look_alikes == NAMES
    texts = [f"a photo of {name}" for name in NAMES]
    expected = finished_charm_run.teacher.encode_text(texts).numpy()
    assert (classifier.look_alikes * expected).sum(axis=1).min() > 1 - 1e-5


def test_an_image_most_like_one_of_them_is_unknown(classifier, photos, exported_charms):
    plain = Classifier.load(exported_charms.folder).classify(photos)
    features = classifier.encode(photos)
    seen = np.array([entry.seen for entry in classifier.classes])
    scores = features @ classifier.bank.T - classifier.manifest.calibration.seen_bias * seen
    others = (features @ classifier.look_alikes.T).max(axis=1)
    for row, (prediction, before) in enumerate(
        zip(classifier.classify(photos), plain, strict=True)
    ):
        assert prediction.candidates == before.candidates
        assert prediction.unknown == (before.unknown or others[row] > scores[row].max())
    classifier.look_alikes = features[:1]  # nothing is more like the first photo
    assert classifier.classify(photos[:1])[0].unknown


def test_a_look_alike_that_becomes_a_class_rejects_nothing_any_more(exported, tmp_path, photos):
    Classifier.load(exported.folder).save(tmp_path / "copy")
    classifier = Classifier.load(tmp_path / "copy")
    classifier.add("Lemon Drop", "a small yellow sweet")
    classifier.save()
    again = Classifier.load(tmp_path / "copy")
    assert again.manifest.look_alikes == ("emerald beetle", "striped sock")
    assert len(again.look_alikes) == 2
    assert again.classify(photos) == classifier.classify(photos)
    classifier.look_alikes = classifier.look_alikes[1:]
    classifier.save()
    with pytest.raises(ClassifierError, match=r"does not fit classifier\.json"):
        Classifier.load(tmp_path / "copy")


def test_the_export_measures_scores_with_and_without_them(exported, finished_charm_run):
    calibration = exported.manifest.calibration
    rows = {row.score: row for row in calibration.unknown_scores}
    assert list(rows) == [
        "cosine", "softmax", "normalised", "cosine, look-alikes", "softmax, look-alikes",
    ]  # fmt: skip
    before = {row.score: row for row in finished_charm_run.report.calibration.unknown_scores}
    assert len(before) == 3
    for name, row in before.items():
        assert rows[name].auroc == pytest.approx(row.auroc, abs=1e-3)
    assert 0 <= calibration.look_alikes_reject_seen <= 100
    assert 0 <= calibration.look_alikes_reject_unseen <= 100
    card = (exported.folder / "README.md").read_text()
    assert f"| softmax, look-alikes | {rows['softmax, look-alikes'].auroc:.3f} |" in card


def export(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)], catch_exceptions=False)


def test_the_command_reads_a_file_and_prints_the_rejection_rates(
    charm_run, charm_world, charm_release, tmp_path
):
    taken = charm_release.labels[0].name
    (tmp_path / "names.txt").write_text(f"lemon drop\n\nLemon-Drop\n{taken}\nsock\n")
    words = ("--look-alikes", tmp_path / "names.txt", "--cache", charm_world / "cache")
    done = export(charm_run, "--out", tmp_path / "classifier", *words)
    assert done.exit_code == 0, done.stderr
    assert "softmax, look-alikes" in done.stdout
    assert "2 look-alikes reject " in done.stderr
    manifest = json.loads((tmp_path / "classifier" / "classifier.json").read_text())
    assert manifest["look_alikes"] == ["lemon drop", "sock"]


def test_an_unreadable_file_is_a_one_line_error_before_the_export(charm_run, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for given, message in (
        (tmp_path / "none.txt", "cannot read"),
        (tmp_path / "empty.txt", "has no names besides those of classes"),
        (tmp_path / "bytes.txt", "is not UTF-8 text"),
        ("release", "has no look-alikes: run the prompt look-alikes and release again"),
    ):
        done = export(charm_run, "--out", tmp_path / "classifier", "--look-alikes", given)
        assert done.exit_code == 1
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "classifier").exists()


def test_those_of_a_release_are_each_named_once_and_are_no_class(charm_release, tmp_path):
    first, second, *others = charm_release.labels
    labels = (
        first.model_copy(update={"look_alikes": ("sock", second.name.upper(), "lemon drop")}),
        second.model_copy(update={"look_alikes": ("Lemon  drop", "sock")}),
        *others,
    )
    release = charm_release.model_copy(update={"labels": labels})
    again = Release.model_validate_json(release.model_dump_json())
    assert look_alikes_of(again) == ("sock", "lemon drop")
    with pytest.raises(TextError, match="cannot read"):
        read_look_alikes(tmp_path / "none.txt", [])
