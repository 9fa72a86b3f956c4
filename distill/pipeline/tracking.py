"""Experiment tracking with accelerate's trackers: configuration, curves, report, classifier.

- Only the main process logs.
- A resumed run continues its runs in the trackers: their ids and logged epochs are stored in
  tracking.json of the run folder.
- A tracker that fails during training is switched off with a log line; training continues.
- The destination is set by each tracker's own settings (MLFLOW_TRACKING_URI, WANDB_MODE …);
  TensorBoard writes to tensorboard/ in the run folder.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from pydantic import BaseModel, TypeAdapter, ValidationError

from contract import Epoch, Report, TrainConfig, error_line
from distill.data.files.atomic_file import write_atomically
from distill.errors import Interrupted, UserError

PROJECT: Final = "enrich-distill"  # experiment of MLflow, project of the others
FILE: Final = "tracking.json"
ARTIFACTS: Final = ("report.json", "report.html")
CLASSIFIER: Final = "classifier"
IN_EXTRA: Final = ("tensorboard", "mlflow")
Log = Callable[[str], None]
Status = Literal["FINISHED", "FAILED", "KILLED"]


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of the trackers `names` are installed.

    Raises:
        UserError: a package is missing.
    """
    for name in names:
        if find_spec(name) is None:
            package = "'enrich-distill[track]'" if name in IN_EXTRA else name
            raise UserError(
                f"track has {name!r}, but the package {name} is not installed: pip install "
                f"{package}, or remove it from `track`"
            )


class TrackedRun(BaseModel):
    """The run in one tracker: its id there, and the epochs that were logged."""

    id: str
    epochs: list[int] = []


class Tracking:
    """The trackers of one run; without trackers, all methods do nothing."""

    def __init__(self, out: Path, log: Log) -> None:
        self._out, self._log = out, log
        self._trackers: list[GeneralTracker] = []
        self._runs: dict[str, TrackedRun] = {}

    def start(self, config: TrainConfig, *, resume: bool) -> None:
        """Start a run in each tracker of `config`, or continue those of the run folder.

        Raises:
            UserError: a tracker does not start.
        """
        self._runs = _read(self._out / FILE) if resume else {}
        for name in config.track:
            known = self._runs.get(name)
            try:
                tracker = _make(name, self._out, known.id if known else None)
                tracker.start()
                if known is None:
                    tracker.store_init_configuration(flatten(config))
            except Exception as error:  # trackers raise many exception types
                self.close("FAILED")
                raise UserError(
                    f"cannot start tracking with {name} ({error_line(error)}): check its settings, "
                    "or remove it from `track`"
                ) from error
            self._trackers.append(tracker)
            self._runs[name] = known or TrackedRun(id=_id_of(tracker, self._out))
        self._save()

    def log_epoch(self, epoch: Epoch) -> None:
        """Log the values of a finished epoch to the trackers that do not have them."""
        values = {name: value for name, value in epoch if isinstance(value, int | float)}
        values.pop("epoch")
        values |= {f"losses/{name}": value for name, value in epoch.losses.items()}
        values |= {f"weights/{name}": value for name, value in epoch.weights.items()}

        def log(tracker: GeneralTracker) -> None:
            logged = self._runs[tracker.name].epochs
            if epoch.epoch not in logged:
                tracker.log(values, step=epoch.epoch)
                logged.append(epoch.epoch)

        self._each(log)
        self._save()

    def finish(self, report: Report) -> None:
        """Log missing epochs, the final accuracies, and the files of the finished run."""
        for epoch in report.epochs:
            self.log_epoch(epoch)
        step = len(report.epochs)
        values = {
            _metric_name(f"final/{row.model}/{row.text}/{row.split}"): row.top1
            for row in report.accuracies
        }
        self._each(lambda tracker: tracker.log(values, step=step))
        self._each(self._add_artifacts)

    def close(self, status: Status = "FINISHED") -> None:
        """End the runs in the trackers; MLflow shows `status`."""
        self._each(lambda tracker: _end(tracker, status))
        self._trackers = []

    def _add_artifacts(self, tracker: GeneralTracker) -> None:
        """Upload report and classifier if the tracker stores files."""
        files = [self._out / name for name in ARTIFACTS if (self._out / name).is_file()]
        classifier = self._out / CLASSIFIER
        if isinstance(tracker, MLflowTracker):
            for file in files:
                tracker.log_artifact(str(file))
            if classifier.is_dir():
                tracker.log_artifacts(str(classifier), CLASSIFIER)
        elif isinstance(tracker, WandBTracker):
            import wandb

            artifact = wandb.Artifact(f"run-{self._runs['wandb'].id}", type="model")
            for file in files:
                artifact.add_file(str(file))
            if classifier.is_dir():
                artifact.add_dir(str(classifier), CLASSIFIER)
            tracker.tracker.log_artifact(artifact)

    def _each(self, action: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # a tracker must not end the training
                self._trackers.remove(tracker)
                with suppress(Exception):
                    _end(tracker, "FAILED")
                self._log(f"tracking with {tracker.name} failed and is off ({error_line(error)})")

    def _save(self) -> None:
        if self._runs:
            write_atomically(self._out / FILE, _RUNS.dump_json(self._runs))


@contextmanager
def tracking(
    config: TrainConfig, out: Path, *, resume: bool, is_main: bool, log: Log
) -> Iterator[Tracking]:
    """The trackers of `config`; their runs end with a status that matches the end of the block.

    Raises:
        UserError: a tracker does not start.
    """
    trackers = Tracking(out, log)
    if is_main and config.track:
        trackers.start(config, resume=resume)
    try:
        yield trackers
    except Interrupted:
        trackers.close("KILLED")
        raise
    except BaseException:
        trackers.close("FAILED")
        raise
    trackers.close()


def flatten(config: TrainConfig) -> dict[str, Any]:
    """`config` as flat parameters without None: losses.cls for the field cls of losses."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        elif isinstance(value, list):
            flat[name] = ", ".join(map(str, value))
        elif value is not None:
            flat[name] = value
    return flat


_RUNS: Final = TypeAdapter(dict[str, TrackedRun])


def _make(name: str, out: Path, known_id: str | None) -> GeneralTracker:
    """The tracker `name`, for a new run or for the one with the id `known_id`."""
    if name == "tensorboard":
        return TensorBoardTracker(name, logging_dir=out)
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        return MLflowTracker(PROJECT, run_id=known_id, run_name=out.name)
    if name == "wandb":
        return WandBTracker(PROJECT, name=out.name, id=known_id, resume="allow")
    return TrackioTracker(PROJECT, name=known_id or out.name, resume="allow")


def _end(tracker: GeneralTracker, status: Status) -> None:
    if isinstance(tracker, MLflowTracker):
        import mlflow

        mlflow.end_run(status)
    else:
        tracker.finish()


def _id_of(tracker: GeneralTracker, out: Path) -> str:
    """The id by which the tracker can resume its run."""
    if isinstance(tracker, MLflowTracker):
        return str(tracker.tracker.info.run_id)
    if isinstance(tracker, WandBTracker):
        return str(tracker.tracker.id)
    return str(getattr(tracker.tracker, "name", None) or out.name)


def _metric_name(name: str) -> str:
    """`name` with only characters that every tracker accepts."""
    return re.sub(r"[^\w./ -]", "_", name)


def _read(path: Path) -> dict[str, TrackedRun]:
    try:
        return _RUNS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
