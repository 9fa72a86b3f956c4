"""A forecast for classes that come later: a rehearsal, trained without some of the seen classes.

Notable:
- The student itself cannot tell: its backbone has seen every seen class, and what is refitted on
  top of it recognises left-out classes far too well.
- The left-out classes are a sample of all degrees of difficulty to the teacher.
- The rehearsal is trained for half the epochs. The teacher's features are those of the run.
- It has a checkpoint of its own in the folder `forecast` of the run.
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
from distill.errors import DataError
from distill.evaluation.accuracy import predict
from distill.evaluation.left_out.classes import SeenImages, leave_out
from distill.evaluation.left_out.forecast import (
    RehearsalScores,
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
SHARE: Final = 4  # one of so many classes is left out
FEWEST_LEFT_OUT: Final = 4  # fewer do not show how much classes differ
FEWEST_CLASSES: Final = 2 * FEWEST_LEFT_OUT
EPOCHS_SHARE: Final = 2  # the rehearsal has one of so many epochs
SEED: Final = 0  # of the left-out classes; the same ones for each seed of a run


@dataclass(frozen=True)
class Rehearsal:
    """A student that was trained without the classes `left_out`, rows of the seen classes."""

    student: Student
    left_out: Tensor
    epochs: int


def rehearse(
    run: RunInputs,
    student: Student,
    out: Path,
    *,
    on_step: Progress,
    should_stop: Callable[[], bool],
    resume: bool,
) -> Rehearsal:
    """Train the new `student` without some of the seen classes.

    Every process of a distributed run calls this. `out` is the folder of the run.

    Raises:
        DataError: there are fewer than FEWEST_CLASSES seen classes with validation images.
        Interrupted: `should_stop` returned true; a checkpoint lets it resume.
        UserError: as `train`.
    """
    left_out = choose_left_out(_teacher_accuracy(run))
    config = rehearsal_config(run.config)
    train(
        config,
        student,
        _training_data(run, left_out),
        callbacks=Callbacks(on_step=on_step, should_stop=should_stop),
        checkpoint=Checkpoint(out / FOLDER / "checkpoint.safetensors", config, run.release.hash),
        resume=resume,
    )
    return Rehearsal(student, left_out, config.epochs)


def rehearsal_config(config: TrainConfig) -> TrainConfig:
    """The configuration of the rehearsal for a run with `config`."""
    epochs = -(-config.epochs // EPOCHS_SHARE)
    return config.model_copy(update={"epochs": epochs, "forecast": False})


def choose_left_out(accuracy: Tensor) -> Tensor:
    """One of each SHARE classes of about equal `accuracy` [classes], NaN for those without images.

    Sorted. Never fewer than FEWEST_LEFT_OUT.

    Raises:
        DataError: fewer than FEWEST_CLASSES have images.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(accuracy), generator=generator)  # of equal ones
    order = order[~accuracy[order].isnan()]
    order = order[accuracy[order].argsort(stable=True)]
    if len(order) < FEWEST_CLASSES:
        raise DataError(
            f"a forecast needs {FEWEST_CLASSES} seen classes with validation images, there are "
            f"{len(order)}: add classes"
        )
    groups = order.tensor_split(max(FEWEST_LEFT_OUT, len(order) // SHARE))
    chosen = [group[torch.randint(len(group), (), generator=generator)] for group in groups]
    return torch.stack(chosen).sort().values


def _teacher_accuracy(run: RunInputs) -> Tensor:
    """The teacher's accuracy on the validation images of each seen class, NaN without any."""
    text, targets = _seen_text(run), seen_targets(run)
    hits = predict(run.features["seen"], text) == targets
    images = torch.bincount(targets, minlength=len(text))
    return torch.bincount(targets, weights=hits.double(), minlength=len(text)) / images


def _training_data(run: RunInputs, left_out: Tensor) -> TrainingData:
    """The training images of the kept classes, with their texts alone."""
    targets, text = run.inputs.splits["train"].targets, _seen_text(run)
    kept = ~torch.isin(torch.arange(len(text)), left_out)
    place = kept.cumsum(0) - 1  # of a kept class among the kept ones
    validation = seen_targets(run)
    tested = kept[validation].nonzero()[:, 0]
    tested = tested[spaced(len(tested))]
    views, teacher = run.views or (None, run.features["train"])
    return TrainingData(
        pixels=run.pixels["train"],
        targets=place[targets],
        teacher=teacher,
        views=views,
        text=text[kept],
        captions=run.captions,
        seen_pixels=run.pixels["seen"][tested],
        seen_targets=place[validation[tested]],
        seen_text=text[kept],
        rows=kept[targets].nonzero()[:, 0],
    )


def forecast(run: RunInputs, student: Student, rehearsal: Rehearsal) -> Forecast:
    """What the rehearsal says of classes that come later, for the trained `student`.

    Of many validation images, evenly spaced ones are used.
    """
    left_out, text = rehearsal.left_out, _seen_text(run)
    kept = ~torch.isin(torch.arange(len(text)), left_out)
    tested = spaced(len(run.inputs.splits["seen"]))
    pixels, targets = run.pixels["seen"][tested], seen_targets(run)[tested]
    of_kept = kept[targets]
    cosines = _cosines(rehearsal.student, pixels, text)
    before = _cosines(student, pixels, text)
    rehearsal_top1, student_top1 = (
        _share_right(scores[of_kept], targets[of_kept], kept) for scores in (cosines, before)
    )
    bias = _seen_bias(run, rehearsal.student, kept, pixels[of_kept], targets[of_kept])
    scores = RehearsalScores.of(cosines, targets, left_out, bias)
    unseen = run.inputs.splits.get("unseen")
    numbers = numbers_of_classes(
        len(text), {len(left_out), *([len(unseen.keys)] if unseen else [])}
    )
    return Forecast(
        left_out=len(left_out),
        images=int((~of_kept).sum()),
        epochs=rehearsal.epochs,
        rehearsal_top1=100 * rehearsal_top1,
        student_top1=100 * student_top1,
        points=forecast_points(
            scores,
            numbers,
            shortfall(rehearsal_top1, student_top1),
            _share_right(before, targets, torch.ones_like(kept)),
        ),
    )


def _seen_text(run: RunInputs) -> Tensor:
    """The texts [classes, dim] of the classes that the run was trained on."""
    return run.bank.select(run.inputs.splits["train"].keys).features


def _cosines(student: Student, pixels: Tensor, text: Tensor) -> Tensor:
    return normalize(student.encode(pixels, student.single_view), dim=1) @ text.T


def _share_right(cosines: Tensor, targets: Tensor, kept: Tensor) -> float:
    """The accuracy among the `kept` classes, 0 to 1."""
    best = cosines.masked_fill(~kept, -torch.inf).argmax(dim=1)
    return float((best == targets).double().mean())


def _seen_bias(
    run: RunInputs, student: Student, kept: Tensor, pixels: Tensor, targets: Tensor
) -> float:
    """The bias against the `kept` classes, chosen for the rehearsal as a student's is.

    `pixels` and `targets` are those of validation images of kept classes.
    """
    text, place = _seen_text(run)[kept], kept.cumsum(0) - 1
    trained = run.inputs.splits["train"].targets
    rows = kept[trained].nonzero()[:, 0]
    rows = rows[spaced(len(rows))]
    expected = new_classes_expected(run) * len(text) // len(kept)
    own = place[targets]
    folds = leave_out(
        SeenImages(student.encode_backbone(run.pixels["train"], rows), place[trained[rows]]),
        SeenImages(student.encode_backbone(pixels, torch.arange(len(pixels))), own),
        text,
        expected,
    )
    return choose_seen_bias(folds, own, _cosines(student, pixels, text), text)
