"""One job from configuration and release to student and report, on images of plain colours."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from typer.testing import CliRunner

from contract import EventKind, Release, Report, TrainConfig
from distill.cli.main import app
from distill.cli.train import parse_seeds
from distill.errors import (
    CheckpointError,
    ClassifierError,
    DataError,
    DeviceError,
    ModelError,
    TextError,
    UserError,
)
from distill.evaluation.report.seeds import SeedsReport
from distill.models.student import load_student
from distill.pipeline.job import run_job
from distill.pipeline.preflight import is_above_chance
from distill.runtime import Classifier
from tests.distill.conftest import SPLITS


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One for all tests: teacher features are computed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def job(
    colour_images, colour_teacher, colours, cache, tmp_path, brief_timing
) -> Callable[..., Report]:
    """A function that runs a job of one epoch; `job.log` has its messages."""

    def run(release: Release = colours, *, resume: bool = False, **config: object) -> Report:
        values = {
            "data": str(colour_images),
            "teacher": colour_teacher,
            "student": "test_resnet",
            "image_size": 32,
            "batch_size": 16,
            "epochs": 1,
            "export": False,
        }

        def on_event(kind: EventKind, data: dict) -> None:
            if kind is EventKind.LOG:
                run.log.append(data["message"])

        return run_job(
            TrainConfig(**(values | config)),
            release,
            tmp_path / "out",
            cache=cache,
            on_event=on_event,
            should_stop=lambda: False,
            resume=resume,
        )

    run.log = []
    return run


@pytest.mark.parametrize("strategy", ["name+description", "attributes", "ensemble", "captions"])
def test_every_strategy_with_texts_is_measured_beside_names_and_shuffled_texts(job, strategy):
    report = job(text_strategy=strategy)
    rows = {(row.model, row.text, row.split) for row in report.accuracies}
    assert rows == {
        (model, text, split)
        for model in ("teacher", "student")
        for text in ("name", strategy, "shuffled", "normalised")
        for split in ("seen", "unseen")
    }


def test_the_control_deals_out_only_the_texts_of_classes_that_have_images(job, colours):
    grey = colours.labels[0].model_copy(update={"key": "grey", "name": "grey", "description": None})
    release = colours.model_copy(
        update={
            "labels": (
                *colours.labels,
                *[grey.model_copy(update={"key": f"grey-{n}"}) for n in range(20)],
            )
        }
    )
    assert "shuffled" in {row.text for row in job(release).accuracies}


def test_the_report_has_the_agreement_with_the_teacher_on_each_split(job):
    report = job(text_strategy="name")
    assert [(row.split, row.images) for row in report.imitation] == [
        ("train", 48),
        ("seen", 48),
        ("unseen", 48),
    ]
    assert [margin.name for margin in report.diagnostics[0].margins] == sorted(
        ("red", "green", "blue")
    ) + sorted(("yellow", "purple", "white"))


def test_files_for_the_page_are_written_beside_the_report(job, tmp_path):
    report = job(text_strategy="name+description")
    assert len(report.similarity.classes) == len(report.text_plane.classes) == 6
    files = [picture.file for picture in report.similarity.pictures]
    assert files == ["similarity-before.png", "similarity-after.png"]
    assert all((tmp_path / "out" / name).is_file() for name in (*files, report.thumbnails.file))
    # Images of unseen classes are for the test alone.
    assert set(report.thumbnails.tiles) <= {"red", "green", "blue"}
    bare = job(text_strategy="name")
    assert bare.text_plane is None and len(bare.similarity.pictures) == 1


def captions_file(folder: Path, count: int = 16) -> str:
    lines = [
        json.dumps({"image": f"train/{name}/{number}.png", "caption": f"a {name} thing {number}"})
        for name in ("red", "green", "blue")
        for number in range(count)
    ]
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def test_captions_of_a_part_of_the_images_are_learned_from(job, tmp_path):
    captions = captions_file(tmp_path, 10)
    report = job(text_strategy="name", captions=captions, losses={"cap": 0.5})
    assert report.epochs[0].losses["cap"] > 0
    assert "captions for 30 of 48 training images" in job.log


def test_missing_captions_are_reported_before_the_first_step(job):
    with pytest.raises(TextError, match=r"cannot read the captions .*nowhere.jsonl .*correct"):
        job(text_strategy="name", captions="nowhere.jsonl", losses={"cap": 1})


def test_preflight_findings_are_printed_in_one_block_and_stored_in_the_report(job):
    found = job(text_strategy="name").preflight
    assert [(split.split, split.images, split.classes, split.fewest) for split in found.splits] == [
        ("train", 48, 3, 16),
        ("seen", 48, 3, 16),
        ("unseen", 48, 3, 16),
    ]
    assert (found.teacher_sample, found.chance) == (48, pytest.approx(100 / 3))
    assert found.teacher_top1 > 60
    assert job.log[1].splitlines() == [
        "train: 48 images of 3 classes, 16 to 16 per class",
        "seen: 48 images of 3 classes, 16 to 16 per class",
        "unseen: 48 images of 3 classes, 16 to 16 per class",
        "unreadable images: none",
        "classes without text: none",
        f"teacher: top-1 {found.teacher_top1:.1f} % on 48 seen images (chance: 33.3 %)",
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_line_at_the_start_describes_device_and_precision(job, precision, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    report = job(text_strategy="name", device="cpu", precision=precision, threads=1)
    assert re.fullmatch(
        rf"device: cpu \(\w+\), precision: {precision}, optimiser: muon, threads: 1, "
        r"waiting threads: sleep, own kernels: on, pixels: cached \(0\.0 GB decoded\)",
        job.log[0],
    )
    assert (report.config.device, report.config.precision) == ("cpu", precision)


def test_a_device_that_is_not_there_stops_the_run_at_once(job):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match=r"no device 'cuda:3' \(PyTorch finds no CUDA GPU\)"):
        job(device="cuda:3")
    assert job.log == []


def test_all_that_is_wrong_is_named_at_once_before_the_teacher_is_asked(
    job, colour_images, colours, tmp_path
):
    data = tmp_path / "images"
    shutil.copytree(colour_images, data)
    for image in ("train/red/0.png", "val/white/3.png"):
        (data / image).write_bytes(b"no image")
    (data / "train/red/gone.png").symlink_to("nowhere.png")
    os.mkfifo(data / "train/red/pipe.png")
    bare = [label.model_copy(update={"description": None}) for label in colours.labels]
    release = colours.model_copy(update={"labels": (bare[0], *colours.labels[1:5], bare[5])})

    with pytest.raises(DataError, match=r"cannot read 4 images: .*0\.png .*3\.png") as error:
        job(release, data=str(data))
    assert "\n" not in str(error.value)
    block = job.log[1]
    assert "unreadable images: 4" in block and "val/white/3.png (it is not an image)" in block
    assert "gone.png (it is a link to a missing file)" in block
    assert "pipe.png (it is a named pipe, not a regular file)" in block
    assert "classes without text: 2\n  red\n  white" in block
    assert "teacher" not in block


def test_classes_without_text_are_all_named(job, colours):
    labels = tuple(label.model_copy(update={"description": None}) for label in colours.labels)
    release = colours.model_copy(update={"labels": labels})
    with pytest.raises(TextError, match=r"6 classes have no text .* and 3 more\): enrich them"):
        job(release)


def test_a_teacher_no_better_than_chance_stops_the_run(job, tiny_teacher):
    with pytest.raises(ModelError, match=r"no more than chance \(33.3 %\): check that folders"):
        job(text_strategy="name", teacher=tiny_teacher)


def test_a_good_teacher_passes_on_twelve_photos(job, colour_images, tmp_path):
    """11 of 12 right among two classes: guessing gets there once in 300 times."""
    data = tmp_path / "few"
    for split, names in SPLITS.items():
        for name in names[:2]:
            images = sorted((colour_images / split / name).iterdir())[:6]
            (data / split / name).mkdir(parents=True)
            for image in images:
                shutil.copy(image, data / split / name)
    odd = data / "val_on_train" / "red" / "0.png"
    shutil.copy(data / "val_on_train" / "green" / "0.png", odd)
    found = job(text_strategy="name", data=str(data)).preflight
    assert found.teacher_sample == 12
    assert found.teacher_top1 == pytest.approx(100 * 11 / 12)


@pytest.mark.parametrize(
    ("hits", "images", "classes", "passes"),
    [
        (11, 12, 2, True),
        (9, 12, 2, False),  # p = 0.073
        (10, 12, 2, True),  # p = 0.019
        (2, 2, 2, True),
        (0, 2, 2, True),  # too few for a comparison
        (0, 3, 3, False),
        (8, 512, 120, False),
        (12, 512, 120, True),
        (512, 512, 2, True),
    ],
)
def test_the_check_against_chance_is_an_exact_binomial_test(hits, images, classes, passes):
    assert is_above_chance(hits, images, 1 / classes) == passes


def test_with_stored_views_the_teacher_sees_what_the_student_sees(job):
    report = job(text_strategy="name", teacher_views=2, epochs=2)
    assert report.config.teacher_views == 2
    assert report.epochs[-1].losses["mse"] > 0


def test_a_student_that_cannot_be_built_is_reported_before_the_teacher_encodes_images(job):
    with pytest.raises(ModelError, match="timm knows no student 'resnet81'"):
        job(student="resnet81")
    with pytest.raises(ModelError, match="vgg11 cannot have an output stride of 16"):
        job(student="vgg11", output_stride=16)
    assert job.log == []


def test_the_student_of_a_job_has_the_output_stride_of_its_configuration(job, tmp_path):
    job(text_strategy="name", output_stride=16)
    assert load_student(tmp_path / "out" / "student.safetensors")[0].output_stride == 16


def test_several_seeds_make_a_report_each_and_a_summary(
    colour_images, colour_teacher, colours, cache, tmp_path
):
    config = {
        "data": str(colour_images),
        "teacher": colour_teacher,
        "student": "test_resnet",
        "image_size": 32,
        "batch_size": 16,
        "epochs": 6,
        "export": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "release.json").write_text(colours.model_dump_json())
    paths = ["--config", "config.json", "--release", "release.json", "--out", "out"]
    paths = [str(tmp_path / path) if "." in path or path == "out" else path for path in paths]
    words = ["train", *paths, "--cache", str(cache), "--seeds"]
    result = CliRunner().invoke(app, [*words, "0,3"])
    assert result.exit_code == 0, result.output
    assert "±" in result.output

    reports = [
        Report.model_validate_json((tmp_path / "out" / f"seed-{seed}" / "report.json").read_bytes())
        for seed in (0, 3)
    ]
    together = SeedsReport.model_validate_json((tmp_path / "out" / "seeds.json").read_bytes())
    assert together.seeds == (0, 3)
    assert [report.config.seed for report in reports] == [0, 3]
    for place, row in enumerate(together.accuracies):
        values = [report.accuracies[place].top1 for report in reports]
        assert row.top1.values == tuple(values)
        assert row.top1.mean == pytest.approx(sum(values) / 2)
        assert row.top1.deviation == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    last = [sum(epoch.seen_top1 for epoch in report.epochs[1:]) / 5 for report in reports]
    assert together.seen_top1_last_epochs.values == pytest.approx(last)
    assert "0, 3" in (tmp_path / "out" / "seeds.html").read_text()


@pytest.mark.parametrize("seeds", ["", "1,", "a", "1,1"])
def test_seeds_that_are_no_list_of_different_numbers_are_refused(seeds):
    with pytest.raises(UserError, match="is not a list of distinct seeds: write it like"):
        parse_seeds(seeds)


def test_a_finished_run_is_tested_otherwise_without_training_again(job, tmp_path):
    before = job(epochs=2)
    assert before.config.test_views == "centre"
    again = job(epochs=2, test_views="ten-crop", resume=True)

    assert again.epochs == before.epochs
    assert load_student(tmp_path / "out" / "student.safetensors")[0].test_views == "ten-crop"
    assert again.imitation != before.imitation


def test_figures_of_the_report_can_be_measured_again_in_any_view(job, colours, tmp_path, cache):
    report = job(test_views="ten-crop")
    (tmp_path / "release.json").write_text(colours.model_dump_json())
    words = ["evaluate", "--data", report.config.data, "--teacher", report.config.teacher]
    words += ["--student", str(tmp_path / "out"), "--release", str(tmp_path / "release.json")]
    words += ["--cache", str(cache), "--json"]

    def top1(*more: str) -> dict:
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    rows = {(r.text, r.split): r for r in report.accuracies if r.model == "student"}
    for split in ("seen", "unseen"):
        assert top1("--split", split) == rows["name+description", split].model_dump()
        found = top1("--split", split, "--normalised")
        assert found == rows["normalised", split].model_dump()
    whole = top1("--split", "seen", "--test-views", "whole")
    assert whole in [row.model_dump() for row in job(test_views="whole", resume=True).accuracies]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:7", "this machine has no device 'cuda:7'"),
        ("gpu", "there is no device 'gpu': choose"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "text-bank", "diagnose", "learn-prompt"])
def test_each_command_names_a_device_that_is_not_there(
    command, name, message, colour_images, colour_teacher, colours, tmp_path
):
    release = tmp_path / "release.json"
    release.write_text(colours.model_dump_json())
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"data": str(colour_images), "teacher": colour_teacher}))
    model = ["--teacher", colour_teacher]
    out = ["--out", str(tmp_path / "out")]
    words = {
        "train": ["--config", str(config), *out],
        "evaluate": [*model, "--data", str(colour_images)],
        "text-bank": [*model, *out],
        "diagnose": model,
        "learn-prompt": [*model, "--data", str(colour_images), *out],
    }[command]
    call = CliRunner().invoke(app, [command, *words, "--release", str(release), "--device", name])
    assert call.exit_code == 1
    assert message in call.stderr and call.stderr.count("\n") == 1


def test_what_is_for_students_alone_is_refused_for_a_teacher(job, colour_images, colour_teacher):
    words = ["evaluate", "--data", str(colour_images), "--teacher", colour_teacher]
    for more in (["--normalised"], ["--test-views", "centre"]):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 1
        assert "need a student: give --student FOLDER" in result.stderr


def test_a_job_ends_with_a_classifier_which_a_new_student_replaces(job, tmp_path, colour_images):
    job(text_strategy="name", export=True)
    assert job.log[-1].startswith("classifier: ") and "equal to PyTorch" in job.log[-1]
    folder = tmp_path / "out" / "classifier"
    classifier = Classifier.load(folder)
    photo = colour_images / "train" / "red" / "0.png"
    assert len(classifier.classify([photo])[0].candidates) == 5
    job(text_strategy="name", seed=1)
    assert not folder.exists()


def test_a_refused_resume_changes_nothing(job, tmp_path, colours):
    job(text_strategy="name")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    texts = [each.model_copy(update={"context": "paint"}) for each in colours.labels]
    other = colours.model_copy(update={"labels": tuple(texts), "hash": "0" * 64})
    for release, config in ((other, {}), (colours, {"learning_rate": 0.5})):
        with pytest.raises(CheckpointError, match="belongs to another configuration or release"):
            job(release, text_strategy="name", resume=True, **config)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("export", [True, False])
def test_a_classifier_to_which_classes_were_added_is_not_replaced(job, tmp_path, export):
    job(text_strategy="name", export=True)
    folder = tmp_path / "out" / "classifier"
    classifier = Classifier.load(folder)
    classifier.add("okapi", "a horse-like animal", allow_near=True)
    classifier.save()
    with pytest.raises(ClassifierError, match=r"1 class .* \('okapi'\), .*: move it elsewhere"):
        job(text_strategy="name", export=export, resume=True)
    assert "okapi" in {each.name for each in Classifier.load(folder).classes}


def test_a_job_succeeds_where_nothing_can_be_exported(job, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    job(text_strategy="name", export=True)
    assert job.log[-1] == (
        "no classifier was exported, onnxscript is not installed: install "
        f"enrich-distill[worker] and run `distill export {out} --out FOLDER`"
    )
    monkeypatch.undo()
    (out / "classifier").mkdir()
    (out / "classifier" / "thesis.txt").write_text("do not lose me")
    assert job(text_strategy="name", export=True, resume=True).accuracies
    assert job.log[-1] == (
        f"no classifier was exported: {out}/classifier has other files and no classifier: choose "
        f"another folder; after fixing this, run `distill export {out} --out FOLDER`"
    )
    assert (out / "classifier" / "thesis.txt").read_text() == "do not lose me"
