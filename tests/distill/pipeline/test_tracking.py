"""Runs as experiment trackers have them, read back from disk with the trackers' own readers."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contract import EventKind, TrainConfig
from distill.cli.main import app
from distill.errors import Interrupted, UserError
from distill.pipeline.job import run_job
from distill.pipeline.tracking import PROJECT

mlflow = pytest.importorskip("mlflow")
# SQLAlchemy 2.1 deprecates what MLflow still uses.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(colour_images, colour_teacher) -> TrainConfig:
    return TrainConfig(
        data=str(colour_images),
        teacher=colour_teacher,
        student="test_resnet",
        image_size=32,
        batch_size=16,
        epochs=3,
        text_strategy="name",
        export=False,
        track=("tensorboard", "mlflow"),
    )


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """The database of MLflow, which also puts artifacts into the working folder."""
    path = tmp_path / "mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    return path


@pytest.fixture
def train(colours, cache, tmp_path):
    """A function that trains into tmp_path/run and stops after `epochs` epochs; gives the log."""

    def train(config, *, stop_after=None, after_epoch=lambda _: None, resume=False) -> list[str]:
        log, done = [], []

        def on_event(kind, data) -> None:
            if kind is EventKind.LOG:
                log.append(data["message"])
            if kind is EventKind.EPOCH:
                done.append(data["epoch"])
                after_epoch(data["epoch"])

        run_job(
            config,
            colours,
            tmp_path / "run",
            cache=cache,
            on_event=on_event,
            should_stop=lambda: stop_after is not None and stop_after in done,
            resume=resume,
        )
        return log

    return train


def runs_of(store: Path) -> list[object]:
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name(PROJECT)
    return list(client.search_runs([experiment.experiment_id]))


def curve(store: Path, run: object, name: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_configuration_curves_report_and_classifier_are_in_mlflow_and_tensorboard(
    train, config, store, tmp_path
):
    train(config.model_copy(update={"export": True}))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (run,) = runs_of(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    params = run.data.params
    assert (params["student"], params["losses.cls"], params["track"]) == (
        "test_resnet", "1.0", "tensorboard, mlflow",
    )  # fmt: skip
    losses = [(epoch["epoch"], epoch["loss"]) for epoch in report["epochs"]]
    assert curve(store, run, "loss") == losses and len(losses) == 3
    seen = [(epoch["epoch"], epoch["seen_top1"]) for epoch in report["epochs"]]
    assert curve(store, run, "seen_top1") == seen
    cls = [(epoch["epoch"], epoch["losses"]["cls"]) for epoch in report["epochs"]]
    assert curve(store, run, "losses/cls") == cls
    unseen = {
        (row["model"], row["text"]): row["top1"]
        for row in report["accuracies"]
        if row["split"] == "unseen"
    }
    assert run.data.metrics["final/student/name/unseen"] == unseen["student", "name"]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "report.json").read_bytes() == (tmp_path / "run/report.json").read_bytes()
    assert (artifacts / "report.html").is_file()
    assert (artifacts / "classifier" / "classifier.json").is_file()

    events = board(tmp_path / "run")
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3]
    assert [point.value for point in events.Scalars("loss")] == pytest.approx(
        [loss for _, loss in losses]
    )
    (parameters,) = (tmp_path / "run" / "tensorboard").glob("*/hparams.yml")
    assert "student: test_resnet" in parameters.read_text()


def test_a_resumed_run_goes_on_in_the_same_run(train, config, store, tmp_path):
    with pytest.raises(Interrupted):
        train(config, stop_after=1)
    (run,) = runs_of(store)
    assert run.info.status == "KILLED"
    assert [step for step, _ in curve(store, run, "loss")] == [1]
    train(config, resume=True)
    (resumed,) = runs_of(store)
    assert (resumed.info.run_id, resumed.info.status) == (run.info.run_id, "FINISHED")
    assert [step for step, _ in curve(store, run, "loss")] == [1, 2, 3]
    assert [point.step for point in board(tmp_path / "run").Scalars("loss")] == [1, 2, 3]


def test_epochs_that_a_killed_process_did_not_log_are_logged_at_the_end(
    train, config, store, tmp_path
):
    with pytest.raises(Interrupted):
        train(config.model_copy(update={"track": ()}), stop_after=2)
    train(config, resume=True)  # switched on in between
    (run,) = runs_of(store)
    assert sorted(step for step, _ in curve(store, run, "loss")) == [1, 2, 3]


def test_a_training_that_fails_ends_its_run_as_failed(train, config, store):
    def fail(_epoch) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(config, after_epoch=fail)
    (run,) = runs_of(store)
    assert run.info.status == "FAILED"


def test_a_tracker_that_fails_is_switched_off_and_the_training_goes_on(
    train, config, store, tmp_path
):
    def damage(epoch) -> None:
        if epoch == 1:
            store.write_bytes(b"no database" * 10_000)

    log = train(config, after_epoch=damage)
    failures = [line for line in log if line.startswith("tracking with mlflow failed and is off")]
    assert len(failures) == 1 and "\n" not in failures[0]
    assert [point.step for point in board(tmp_path / "run").Scalars("loss")] == [1, 2, 3]
    assert (tmp_path / "run" / "report.json").is_file()


def test_nothing_is_written_unless_it_is_asked_for(train, config, store, tmp_path):
    train(config.model_copy(update={"track": (), "epochs": 1}))
    assert not store.exists()
    assert not list((tmp_path / "run").glob("*track*")) + list((tmp_path / "run").glob("tensor*"))


def test_a_missing_package_is_a_one_line_error_before_the_training(config, colours, tmp_path):
    values = config.model_dump(mode="json") | {"track": ["tensorboard", "wandb"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "release.json").write_text(colours.model_dump_json())
    options = ["--config", tmp_path / "config.json", "--release", tmp_path / "release.json"]
    done = CliRunner().invoke(app, ["train", *map(str, options), "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert (
        done.stderr.count("\n") == 1
        and "the package wandb is not installed: pip install wandb" in done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_an_unusable_store_is_a_one_line_error_before_the_training(
    train, config, store, monkeypatch
):
    folder = f"file://{store.parent}/runs"  # MLflow no longer takes one
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder)
    mlflow.set_tracking_uri(folder)
    with pytest.raises(UserError, match=r"^cannot start tracking with mlflow \(.*remove it from"):
        train(config)


def test_trackers_are_given_as_a_list_or_as_text():
    given = {"data": "d", "teacher": "t"}
    assert TrainConfig(**given).track == ()
    assert TrainConfig(**given, track="tensorboard, mlflow").track == ("tensorboard", "mlflow")
    with pytest.raises(ValidationError, match="trackio"):
        TrainConfig(**given, track=["aim"])
