"""A folder with train/ only: student, classifier, and a report that notes missing figures."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from click.testing import Result
from typer.testing import CliRunner

from contract import Report
from distill.cli.main import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory, colour_images, colour_teacher, brief_timing) -> Path:
    """A folder with images in train/ alone, a list of labels and a configuration."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(colour_images / "train", folder / "photos" / "train")
    (folder / "labels.txt").write_text("red 0 red\ngreen 1 green\nblue 2 blue\n")
    config = {
        "data": str(folder / "photos"),
        "teacher": colour_teacher,
        "student": "test_resnet",
        "text_strategy": "name",
        "image_size": 32,
        "batch_size": 16,
        "epochs": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def invoke(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(
        app, [*words, "--cache", str(folder / "cache")], env={"COLUMNS": "200"}
    )


@pytest.fixture(scope="module")
def trained(folder) -> Result:
    return invoke(
        folder, "train", "--config", str(folder / "config.json"),
        "--labels", str(folder / "labels.txt"), "--out", str(folder / "run"),
    )  # fmt: skip


def test_a_student_is_trained_and_the_console_notes_missing_figures(trained):
    assert trained.exit_code == 0, trained.output
    assert "seen: 9 images of 3 classes, 3 to 3 per class, held out of training" in trained.stderr
    assert "the data has no unseen classes, so the accuracy on classes" in trained.stderr


def test_the_report_has_no_unseen_figures_and_a_note(trained, folder):
    report = Report.model_validate_json((folder / "run" / "report.json").read_bytes())
    assert {row.split for row in report.accuracies} == {"seen"}
    assert [split.held_out for split in report.preflight.splits] == [False, True]
    assert report.joint == () and report.calibration.seen_bias == 0
    assert report.calibration.unknown_auroc is None
    assert report.calibration.unknown_threshold is not None
    page = (folder / "run" / "report.html").read_text()
    assert "What was not measured" in page
    assert "9 of the training images were held out before training" in page
    assert "recognises" in page and "AUROC" not in page


def test_a_run_is_not_overwritten_by_forgetting_resume(trained, folder):
    words = [
        "train", "--config", str(folder / "config.json"), "--labels", str(folder / "labels.txt"),
        "--out", str(folder / "run"),
    ]  # fmt: skip
    before = (folder / "run" / "report.json").read_bytes()
    for more in ([], ["--seeds", "0,1"]):
        refused = invoke(folder, *words, *more)
        assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
        assert "run holds a run already: continue it with --resume, or choose" in refused.stderr
    assert (folder / "run" / "report.json").read_bytes() == before
    resumed = invoke(folder, *words, "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_evaluate_measures_seen_classes_and_refuses_options_that_need_unseen_ones(
    trained, folder, colour_teacher
):
    words = [
        "evaluate", "--data", str(folder / "photos"), "--teacher", colour_teacher,
        "--student", str(folder / "run"), "--labels", str(folder / "labels.txt"), "--json",
    ]  # fmt: skip
    found = invoke(folder, *words)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["split"] == "seen"
    assert json.loads(found.stdout)["images"] == 9
    assert "the data has no unseen classes" in found.stderr
    for more in (["--split", "unseen"], ["--joint"]):
        refused = invoke(folder, *words, *more)
        assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
        assert "the data has no unseen classes" in refused.stderr
    few = invoke(
        folder, "few-shot", "--data", str(folder / "photos"), "--student", str(folder / "run"),
        "--labels", str(folder / "labels.txt"), "-k", "1",
    )  # fmt: skip
    assert few.exit_code == 1 and "the data has no unseen classes" in few.stderr


def test_the_student_becomes_a_classifier_that_takes_new_classes(trained, folder):
    words = ["export", str(folder / "run"), "--out", str(folder / "classifier")]
    exported = invoke(folder, *words)
    assert exported.exit_code == 0, exported.output
    card = (folder / "classifier" / "README.md").read_text()
    assert "Without images of unseen classes, the accuracy on classes" in card
    photo = str(next((folder / "photos" / "train" / "red").iterdir()))
    words = ["predict", str(folder / "classifier"), photo, "--add", "white=all white", "--json"]
    predicted = CliRunner().invoke(app, words)
    assert predicted.exit_code == 0, predicted.output
