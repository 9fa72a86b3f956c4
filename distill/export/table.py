"""The rows of an export's table: size, speed and accuracy of each format and model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from distill.embeddings.image_features import image_features
from distill.embeddings.text_bank import TextBank, build_text_bank
from distill.errors import ModelError
from distill.evaluation.accuracy import predict, score
from distill.evaluation.figures import EvaluatedSplit
from distill.export.finished_run import FinishedRun
from distill.export.verify import BATCH, FormatRow, Speed, measure_speed
from distill.models.teacher import Teacher, load_teacher


def encoder_row(
    name: str,
    size: int | None,
    encode: Callable[[Tensor], object],
    features: Mapping[EvaluatedSplit, Tensor],
    run: FinishedRun,
    images: Tensor | None = None,
) -> FormatRow:
    """The row of the student in a format of `size` bytes, which computes the unit `features`.

    `encode` is timed on `images`, by default on the seen validation images.
    """
    speed = measure_speed(encode, run.pixels["seen"] if images is None else images)
    seen, unseen = _top1(features, run, run.bank)
    return FormatRow(name, None if size is None else size / 1e6, speed, seen, unseen)


def teacher_row(run: FinishedRun) -> FormatRow:
    """The row of the teacher at its own image size, with the accuracies of the run's report."""
    top1 = {
        row.split: row.top1
        for row in run.report.accuracies
        if row.model == "teacher" and row.text == run.bank.strategy
    }
    megabytes, speed = _measure_teacher(run.teacher)
    return FormatRow("teacher", megabytes, speed, top1["seen"], top1.get("unseen"))


def load_rival(name: str) -> Teacher:
    """Load the open_clip model `name`; any teacher name is allowed.

    Raises:
        ModelError: it is unknown or cannot be loaded.
    """
    try:
        return load_teacher(name)
    except ModelError as error:
        raise ModelError(f"--rival {name}: {error}") from None


def rival_row(rival: Teacher, run: FinishedRun, cache: Path | None) -> FormatRow:
    """The row of another open_clip model, with the images of the run and the student's texts."""
    row, _ = open_clip_row(rival, run, cache)
    return row


def open_clip_row(
    model: Teacher, run: FinishedRun, cache: Path | None
) -> tuple[FormatRow, dict[EvaluatedSplit, Tensor]]:
    """The row of an open_clip model, and its unit features of the validation images."""
    bank = build_text_bank(model, run.release, run.bank.strategy, keys=run.bank.keys, cache=cache)
    features = {
        name: image_features(model, split, cache=cache) for name, split in run.splits.items()
    }
    megabytes, speed = _measure_teacher(model)
    return FormatRow(model.name, megabytes, speed, *_top1(features, run, bank)), features


def _top1(
    features: Mapping[EvaluatedSplit, Tensor], run: FinishedRun, bank: TextBank
) -> tuple[float, float | None]:
    """Top-1 in percent on seen and unseen images, each among the classes of its split."""
    top1 = {}
    for name, split in run.splits.items():
        predicted = predict(features[name], bank.select(split.keys).features)
        top1[name], _ = score(predicted, split.targets, len(split.keys))
    return top1["seen"], top1.get("unseen")


def _measure_teacher(teacher: Teacher) -> tuple[float, Speed]:
    """Size of an open_clip model's image tower in MB, and its speed at its own image size."""
    visual = cast(nn.Module, teacher.model.visual)
    size = sum(weight.numel() * weight.element_size() for weight in visual.parameters())
    images = torch.rand(BATCH, 3, teacher.image_size, teacher.image_size)
    return size / 1e6, measure_speed(teacher.encode_image, images)
