"""Loads a finished training run for an export."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import Release, Report
from distill.data.pixels import Progress, open_pixels
from distill.data.releases import read_release
from distill.data.splits import Split, scan_splits
from distill.data.streamed_pixels import Pixels
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, ModelError
from distill.evaluation.figures import EvaluatedSplit
from distill.evaluation.report.training_report import read_report
from distill.evaluation.score_norm import FILE as SCORE_NORM_FILE
from distill.evaluation.score_norm import ScoreNorm
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import Student, load_student
from distill.models.teacher import Teacher, load_teacher

BANK_FILE: Final = "text_bank.safetensors"
RELEASE_FILE: Final = "release.json"
EVALUATED: Final[tuple[EvaluatedSplit, ...]] = ("seen", "unseen")


@dataclass(frozen=True)
class FinishedRun:
    """The results of a run, with its teacher and its validation images."""

    report: Report
    release: Release
    bank: TextBank
    student: Student
    teacher: Teacher
    train: Split
    splits: Mapping[EvaluatedSplit, Split]
    pixels: Mapping[EvaluatedSplit, Pixels]  # uint8 [images, 3, size, size]
    score_norm: ScoreNorm


def load_run(
    folder: Path,
    *,
    data: Path | None = None,
    teacher: str | None = None,
    cache: Path,
    bar: Callable[[str], Progress],
) -> FinishedRun:
    """Load the finished run in `folder`.

    `data` and `teacher` replace the paths in the configuration if images or teacher have moved.

    Raises:
        UserError: there is no finished run, its images cannot be read, or the teacher differs.
    """
    report = read_report(folder)
    if report.calibration is None:
        raise DataError(f"the run {folder} has no calibration in its report: train it again")
    bank = TextBank.load(folder / BANK_FILE)
    student, size = load_student(folder / STUDENT_FILE)
    release = read_release(folder / RELEASE_FILE)
    loaded = load_teacher(teacher or report.config.teacher)
    if loaded.fingerprint != report.teacher_fingerprint:
        raise ModelError(
            f"the weights of the teacher {loaded.name} differ from those used in the run {folder}: "
            "give the right teacher with --teacher"
        )
    all_splits = scan_splits(data or report.config.data, bank.keys, cache=cache)
    splits = {name: all_splits[name] for name in EVALUATED if name in all_splits}
    pixels = {
        name: open_pixels(split, size, cache, report.config.pixels, bar(f"Pixels, {name}"))
        for name, split in splits.items()
    }
    return FinishedRun(
        report=report,
        release=release,
        bank=bank,
        student=student,
        teacher=loaded,
        train=all_splits["train"],
        splits=splits,
        pixels=pixels,
        score_norm=ScoreNorm.load(folder / SCORE_NORM_FILE),
    )
