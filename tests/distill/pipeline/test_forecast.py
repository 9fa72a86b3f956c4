"""The forecast as a step of a training: added to a finished run, interrupted, and impossible."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from contract import EventKind
from distill.cli.main import app
from distill.data.releases import read_release
from distill.errors import DataError, Interrupted
from distill.evaluation.report.training_report import read_report
from distill.pipeline.forecast import MIN_CLASSES, choose_left_out
from distill.pipeline.job import run_job


def copy_of(charm_run: Path, folder: Path) -> Path:
    shutil.copytree(charm_run, folder)
    return folder


@pytest.fixture(scope="module")
def forecast_run(charm_run, charm_world, tmp_path_factory):
    """The command's output, and the finished run that it added a forecast to."""
    out = copy_of(charm_run, tmp_path_factory.mktemp("forecast") / "run")
    config = read_report(charm_run).config.model_copy(update={"export": True})
    (out / "config.json").write_text(config.model_dump_json())
    words = [
        "train", "--config", out / "config.json", "--release", out / "release.json", "--out", out,
        "--cache", charm_world / "cache", "--resume", "--forecast",
    ]  # fmt: skip
    return CliRunner().invoke(app, [str(word) for word in words]), out


def test_a_finished_run_gets_a_forecast_without_being_trained_again(forecast_run, charm_run):
    done, out = forecast_run
    assert done.exit_code == 0, done.stderr
    assert "forecast for 9 new classes: " in done.stderr
    report, before = read_report(out), read_report(charm_run)
    assert report.epochs == before.epochs and report.accuracies == before.accuracies
    forecast = report.forecast
    assert (forecast.left_out, forecast.images, forecast.epochs) == (9, 18, 1)
    assert [point.classes for point in forecast.points] == [2, 5, 9, 10, 15, 20, 36]
    assert [point.extrapolated for point in forecast.points] == [False] * 3 + [True] * 4
    alone = [point.alone.value for point in forecast.points]
    assert alone == sorted(alone, reverse=True)


def test_the_page_and_the_model_card_show_it(forecast_run):
    _, out = forecast_run
    page = (out / "report.html").read_text()
    assert "Forecast for new classes" in page
    assert 'aria-label="Forecast for new classes"' in page
    assert "trained without them for 1 of 1 epochs" in page
    assert "Measured on the 15 unseen classes: " in page
    card = (out / "classifier" / "README.md").read_text()
    assert "Forecast for classes that are added by a description" in card
    assert "; 9 new classes: " in card


def test_a_forecast_that_was_stopped_goes_on_and_ends_with_the_same_numbers(
    forecast_run, charm_run, charm_world, tmp_path
):
    out = copy_of(charm_run, tmp_path / "run")
    config = read_report(charm_run).config.model_copy(update={"forecast": True})
    release, steps = read_release(out / "release.json"), []

    def on_event(kind, data):
        if kind is EventKind.PROGRESS and data["phase"] == "Training for the forecast":
            steps.append(data["step"])

    def run(should_stop):
        return run_job(
            config, release, out, cache=charm_world / "cache", on_event=on_event,
            should_stop=should_stop, resume=True,
        )  # fmt: skip

    with pytest.raises(Interrupted):
        run(lambda: bool(steps))
    assert read_report(out).forecast is None
    assert (out / "forecast" / "checkpoint.safetensors").is_file()
    assert run(lambda: False).forecast == read_report(forecast_run[1]).forecast


def test_too_few_classes_give_no_forecast_and_a_note(
    colour_images, colour_teacher, colours, tmp_path
):
    from contract import TrainConfig

    config = TrainConfig(
        data=str(colour_images), teacher=colour_teacher, student="test_resnet", image_size=32,
        batch_size=16, epochs=1, export=False, forecast=True,
    )  # fmt: skip
    lines = []
    report = run_job(
        config, colours, tmp_path / "run", cache=tmp_path / "cache",
        on_event=lambda kind, data: kind is EventKind.LOG and lines.append(data["message"]),
        should_stop=lambda: False,
    )  # fmt: skip
    assert report.forecast is None
    (line,) = (line for line in lines if line.startswith("no forecast: "))
    assert "needs at least 8 seen classes with validation images, there are 3: add classes" in line


def test_the_left_out_classes_are_of_all_degrees_of_difficulty():
    accuracy = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()
    accuracy[7] = torch.nan  # a class without validation images
    left_out = choose_left_out(accuracy)
    assert len(left_out) == 9 and 7 not in left_out
    for group in accuracy.nan_to_num(2).argsort()[:39].tensor_split(9):
        assert torch.isin(left_out, group).sum() == 1
    assert choose_left_out(accuracy).equal(left_out)
    assert len(choose_left_out(torch.rand(MIN_CLASSES))) == MIN_CLASSES // 2
    with pytest.raises(DataError, match="needs at least 8 seen classes"):
        choose_left_out(torch.rand(MIN_CLASSES - 1))
