"""Forecasts the accuracy on new classes with a proxy, a student trained without some seen classes.

- The student itself cannot be used: its backbone was trained on every seen class, so a head that is
  refitted without some classes still recognises them far too well.
- The left-out classes are stratified by the teacher's accuracy, from easy to hard.
- The proxy is trained for half the epochs, with the teacher features of the run.
- Its checkpoint is in the folder `forecast` of the run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contract import Forecast, TrainConfig
from distill.data.pixels import Progress
from distill.data.streamed_pixels import Pixels, select_rows
from distill.errors import DataError
from distill.evaluation.accuracy import predict
from distill.evaluation.left_out.classes import SeenImages, leave_out
from distill.evaluation.left_out.forecast import (
    ProxyScores,
    forecast_points,
    numbers_of_classes,
    shortfall,
)
from distill.evaluation.left_out.seen_bias import choose_seen_bias
from distill.models.student import Student
from distill.pipeline.results import RunInputs, new_classes_expected, seen_targets, spaced
from distill.training.checkpoint import Checkpoint
from distill.training.loop import Callbacks, TrainingData, train

FOLDER: Final = "forecast"
CLASSES_PER_LEFT_OUT: Final = 4  # one of four seen classes is left out
MIN_LEFT_OUT: Final = 4  # to estimate the variance between classes
MIN_CLASSES: Final = 2 * MIN_LEFT_OUT
EPOCHS_DIVISOR: Final = 2  # the proxy is trained for half the epochs
SEED: Final = 0  # of the choice of left-out classes, independent of the run's seed


@dataclass(frozen=True)
class Proxy:
    """A student trained without the classes `left_out` [left out], indices of seen classes."""

    student: Student
    left_out: Tensor
    epochs: int


def train_proxy(
    run: RunInputs,
    student: Student,
    out: Path,
    *,
    on_step: Progress,
    should_stop: Callable[[], bool],
    resume: bool,
) -> Proxy:
    """Train the new `student` without some of the seen classes.

    Every process of a distributed run calls this. `out` is the folder of the run.

    Raises:
        DataError: fewer than MIN_CLASSES seen classes have validation images.
        Interrupted: `should_stop` returned true; a checkpoint lets it resume.
        UserError: as in `train`.
    """
    left_out = choose_left_out(_teacher_accuracy(run))
    config = proxy_config(run.config)
    train(
        config,
        student,
        _training_data(run, left_out),
        callbacks=Callbacks(on_step=on_step, should_stop=should_stop),
        checkpoint=Checkpoint(out / FOLDER / "checkpoint.safetensors", config, run.release.hash),
        resume=resume,
    )
    return Proxy(student, left_out, config.epochs)


def proxy_config(config: TrainConfig) -> TrainConfig:
    """The configuration of the proxy for a run with `config`."""
    epochs = -(-config.epochs // EPOCHS_DIVISOR)
    return config.model_copy(update={"epochs": epochs, "forecast": False})


def choose_left_out(accuracy: Tensor) -> Tensor:
    """Choose classes to leave out, a random one of each group with about equal `accuracy`.

    `accuracy` [classes] is NaN for classes without images, which are never chosen. Returns sorted
    indices: one of CLASSES_PER_LEFT_OUT classes, at least MIN_LEFT_OUT.

    Raises:
        DataError: fewer than MIN_CLASSES have images.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(accuracy), generator=generator)  # random order of ties
    order = order[~accuracy[order].isnan()]
    order = order[accuracy[order].argsort(stable=True)]
    if len(order) < MIN_CLASSES:
        raise DataError(
            f"a forecast needs at least {MIN_CLASSES} seen classes with validation images, there "
            f"are {len(order)}: add classes"
        )
    groups = order.tensor_split(max(MIN_LEFT_OUT, len(order) // CLASSES_PER_LEFT_OUT))
    chosen = [group[torch.randint(len(group), (), generator=generator)] for group in groups]
    return torch.stack(chosen).sort().values


def _teacher_accuracy(run: RunInputs) -> Tensor:
    """The teacher's accuracy [classes] on validation images of seen classes, NaN without images."""
    text, targets = _seen_text(run), seen_targets(run)
    hits = predict(run.features["seen"], text) == targets
    images = torch.bincount(targets, minlength=len(text))
    return torch.bincount(targets, weights=hits.double(), minlength=len(text)) / images


def _training_data(run: RunInputs, left_out: Tensor) -> TrainingData:
    """The training images of the kept classes, with only the texts of these classes."""
    targets, text = run.inputs.splits["train"].targets, _seen_text(run)
    kept = ~torch.isin(torch.arange(len(text)), left_out)
    kept_index = kept.cumsum(0) - 1  # from a seen class to its index among the kept classes
    validation = seen_targets(run)
    tested = kept[validation].nonzero()[:, 0]
    tested = tested[spaced(len(tested))]
    views, teacher = run.views or (None, run.features["train"])
    return TrainingData(
        pixels=run.pixels["train"],
        targets=kept_index[targets],
        teacher=teacher,
        views=views,
        text=text[kept],
        captions=run.captions,
        seen_pixels=select_rows(run.pixels["seen"], tested),
        seen_targets=kept_index[validation[tested]],
        seen_text=text[kept],
        rows=kept[targets].nonzero()[:, 0],
    )


def forecast(run: RunInputs, student: Student, proxy: Proxy) -> Forecast:
    """The forecast of the trained `student`'s accuracy on new classes, measured with `proxy`.

    If there are many validation images, evenly spaced ones are used.
    """
    left_out, text = proxy.left_out, _seen_text(run)
    kept = ~torch.isin(torch.arange(len(text)), left_out)
    tested = spaced(len(run.inputs.splits["seen"]))
    pixels, targets = select_rows(run.pixels["seen"], tested), seen_targets(run)[tested]
    of_kept = kept[targets]
    proxy_cosines = _cosines(proxy.student, pixels, text)
    student_cosines = _cosines(student, pixels, text)
    proxy_top1, student_top1 = (
        _accuracy(cosines[of_kept], targets[of_kept], kept)
        for cosines in (proxy_cosines, student_cosines)
    )
    pixels_of_kept = select_rows(pixels, of_kept)
    bias = _seen_bias(run, proxy.student, kept, pixels_of_kept, targets[of_kept])
    scores = ProxyScores.of(proxy_cosines, targets, left_out, bias)
    unseen = run.inputs.splits.get("unseen")
    numbers = numbers_of_classes(
        len(text), {len(left_out), *([len(unseen.keys)] if unseen else [])}
    )
    return Forecast(
        left_out=len(left_out),
        images=int((~of_kept).sum()),
        epochs=proxy.epochs,
        proxy_top1=100 * proxy_top1,
        student_top1=100 * student_top1,
        points=forecast_points(
            scores,
            numbers,
            shortfall(proxy_top1, student_top1),
            _accuracy(student_cosines, targets, torch.ones_like(kept)),
        ),
    )


def _seen_text(run: RunInputs) -> Tensor:
    """The texts [classes, dim] of the classes that the run was trained on."""
    return run.bank.select(run.inputs.splits["train"].keys).features


def _cosines(student: Student, pixels: Pixels, text: Tensor) -> Tensor:
    return normalize(student.encode(pixels, student.single_view), dim=1) @ text.T


def _accuracy(cosines: Tensor, targets: Tensor, kept: Tensor) -> float:
    """The accuracy among the `kept` classes, 0 to 1."""
    best = cosines.masked_fill(~kept, -torch.inf).argmax(dim=1)
    return float((best == targets).double().mean())


def _seen_bias(
    run: RunInputs, student: Student, kept: Tensor, pixels: Pixels, targets: Tensor
) -> float:
    """The bias against the `kept` classes, chosen for the proxy as for a student.

    `pixels` and `targets` are those of the validation images of kept classes.
    """
    text, kept_index = _seen_text(run)[kept], kept.cumsum(0) - 1
    trained = run.inputs.splits["train"].targets
    rows = kept[trained].nonzero()[:, 0]
    rows = rows[spaced(len(rows))]
    expected = new_classes_expected(run) * len(text) // len(kept)
    kept_targets = kept_index[targets]
    folds = leave_out(
        SeenImages(student.encode_backbone(run.pixels["train"], rows), kept_index[trained[rows]]),
        SeenImages(student.encode_backbone(pixels, torch.arange(len(pixels))), kept_targets),
        text,
        expected,
    )
    return choose_seen_bias(folds, kept_targets, _cosines(student, pixels, text), text)
