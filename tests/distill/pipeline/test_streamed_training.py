"""A training on streamed pixels is one on cached pixels, in another order of work."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file
from typer.testing import CliRunner

from contract import EventKind, Report, TrainConfig
from distill.cli.main import app
from distill.errors import Interrupted, UnreadableImages
from distill.pipeline.job import run_job


@pytest.fixture
def train(colour_images, colour_teacher, colours, tmp_path):
    """A function that runs a job of two epochs; `train.log` has its messages."""

    def run(name: str, *, stop_after: int | None = None, resume=False, **config) -> Report:
        values = {
            "data": str(colour_images),
            "teacher": colour_teacher,
            "student": "test_resnet",
            "image_size": 32,
            "batch_size": 16,
            "epochs": 2,
            "export": False,
        }
        steps = iter(range(1, 1000))

        def on_event(kind: EventKind, data: dict) -> None:
            if kind is EventKind.LOG:
                run.log.append(data["message"])

        return run_job(
            TrainConfig(**(values | config)),
            colours,
            tmp_path / name,
            cache=tmp_path / f"cache-{name}",
            on_event=on_event,
            should_stop=lambda: stop_after is not None and next(steps) >= stop_after,
            resume=resume,
        )

    run.log = []
    return run


def result(report: Report, out: Path) -> tuple[list, dict[str, bytes]]:
    """Losses and accuracies without times, and the weights bit by bit."""
    epochs = [
        epoch.model_dump(exclude={"seconds", "image_wait", "images_per_second"})
        for epoch in report.epochs
    ]
    weights = load_file(out / "student.safetensors")
    return [*epochs, report.accuracies, report.calibration], {
        name: value.numpy().tobytes() for name, value in weights.items()
    }


def pixel_files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*.u8") if path.stat().st_size]


@pytest.mark.parametrize("views", [0, 3])
def test_cached_and_streamed_pixels_train_the_same_student(train, tmp_path, views):
    cached = train("cached", pixels="cached", teacher_views=views)
    streamed = train("streamed", pixels="streamed", teacher_views=views)
    assert result(cached, tmp_path / "cached") == result(streamed, tmp_path / "streamed")
    assert pixel_files(tmp_path / "cache-cached") and not pixel_files(tmp_path / "cache-streamed")
    machine = [line for line in train.log if line.startswith("device:")]
    assert "pixels: cached (as configured, 0.0 GB decoded)" in machine[0]
    assert "pixels: streamed (as configured, 0.0 GB decoded)" in machine[1]


@pytest.mark.parametrize(("before", "after"), [("streamed", "streamed"), ("cached", "streamed")])
def test_a_resumed_run_ends_like_an_uninterrupted_one_in_either_mode(
    train, tmp_path, before, after
):
    unbroken = train("unbroken", pixels="streamed")
    for step in (1, 2):  # within an epoch
        with pytest.raises(Interrupted):
            train("run", pixels=before, stop_after=step, resume=True)
    report = train("run", pixels=after, resume=True)
    assert result(report, tmp_path / "run") == result(unbroken, tmp_path / "unbroken")


def test_images_that_cannot_be_read_are_all_named_before_the_first_step(
    train, colour_images, tmp_path
):
    root = shutil.copytree(colour_images, tmp_path / "images")
    (root / "train" / "green" / "3.png").write_bytes(b"no image")
    (root / "train" / "red" / "9.png").write_bytes(b"")
    with pytest.raises(UnreadableImages, match="cannot read 2 images: .*green/3.png .*red/9.png"):
        train("run", data=str(root), pixels="streamed")
    assert "unreadable images: checked when the teacher encodes them" in train.log[1]


def test_the_pixel_mode_is_an_option_of_the_command(
    colour_images, colour_teacher, colours, tmp_path
):
    values = {"data": str(colour_images), "teacher": colour_teacher, "student": "test_resnet",
              "image_size": 32, "batch_size": 16, "epochs": 1, "export": False}  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(values))
    (tmp_path / "release.json").write_text(colours.model_dump_json())
    options = ["--config", tmp_path / "train.json", "--release", tmp_path / "release.json",
               "--out", tmp_path / "run", "--cache", tmp_path / "cache"]  # fmt: skip
    arguments = ["train", "--pixels", "streamed", *map(str, options)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "pixels: streamed" in " ".join(ran.stderr.split())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["config"]["pixels"] == (
        "streamed"
    )
    ran = CliRunner().invoke(app, [*arguments[:2], "both", *arguments[3:]])
    assert ran.exit_code == 2 and "'cached'" in ran.stderr
