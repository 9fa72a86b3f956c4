"""Results of a training run: the student, its accuracies and the report."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from contract import (
    Accuracy,
    ConfusablePair,
    Epoch,
    Forecast,
    Preflight,
    PulledApart,
    Release,
    Report,
    Similarity,
    SplitName,
    TextDiagnostics,
    TextPlane,
    Thumbnails,
    TrainConfig,
)
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels
from distill.embeddings.look_alikes import look_alikes_of, prompt_of
from distill.embeddings.text_bank import TextBank
from distill.evaluation.accuracy import accuracy, imitation
from distill.evaluation.diagnostics import diagnose, pulled_apart, text_plane
from distill.evaluation.figures import calibrate, joint_accuracy
from distill.evaluation.left_out.classes import SeenImages, leave_out
from distill.evaluation.left_out.photo_weight import choose_text_photos
from distill.evaluation.left_out.seen_bias import choose_seen_bias
from distill.evaluation.report.images import draw_similarity, draw_thumbnails
from distill.evaluation.report.training_report import CONTROL, NORMALISED, read_report, write_report
from distill.evaluation.score_norm import FILE as SCORE_NORM_FILE
from distill.evaluation.score_norm import ScoreNorm
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import TIMM_FOLDER, Student, save_for_timm, save_student
from distill.pipeline.inputs import Inputs

BANK_FILE: Final = "text_bank.safetensors"  # of the strategy that the student was trained on
NAME_BANK_FILE: Final = "name_bank.safetensors"
LAST_EPOCHS: Final = 5
LEFT_OUT_IMAGES: Final = 10_000  # maximum per split for choices on left-out classes
SEEN_PER_NEW_CLASS: Final = 4  # assumed if there are no unseen classes
MAP_CLASSES: Final = 1000  # rows of a similarity map, one pixel each
PLANE_CLASSES: Final = 250  # arrows on the plane of texts
EVALUATED: Final[tuple[Literal["seen", "unseen"], ...]] = ("seen", "unseen")


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run before its first training step."""

    config: TrainConfig
    release: Release
    inputs: Inputs
    checks: Preflight | None
    pixels: Mapping[SplitName, Pixels]  # uint8 [images, 3, size, size]
    banks: Mapping[str, TextBank]  # plain names, the configured strategy, the control
    features: Mapping[SplitName, Tensor]  # unnormalised teacher features of the clean images
    views: tuple[Tensor, Tensor] | None  # view parameters, and the teacher's features of the views
    captions: Tensor | None  # features [images, dim]
    teacher_rows: tuple[Accuracy, ...]
    started_at: datetime

    @property
    def bank(self) -> TextBank:
        """The text bank of the configured strategy."""
        return self.banks[self.config.text_strategy]


def add_forecast(run: RunInputs, report: Report, forecast: Forecast, out: Path) -> Report:
    """Add a forecast to the report, and write it to `out` again.

    Raises:
        DataError: `out` cannot be written to.
    """
    changes = {"forecast": forecast, "finished_at": datetime.now(UTC)}
    report = report.model_copy(update=changes)
    similarity = _similarity(run.banks["name"], run.bank)
    write_report(report, out, similarity=similarity, names=run.bank.names)
    return report


def write_results(run: RunInputs, student: Student, out: Path, epochs: tuple[Epoch, ...]) -> Report:
    """Save the trained student to `out`, evaluate it and write the report.

    Raises:
        DataError: `out` cannot be written to.
    """
    config, teacher = run.config, run.inputs.teacher
    save_student(
        student,
        out / STUDENT_FILE,
        name=config.student,
        dim=teacher.dim,
        image_size=config.image_size,
        teacher=config.teacher,
    )
    timm_folder = out / TIMM_FOLDER
    save_for_timm(student, timm_folder, name=config.student, image_size=config.image_size)
    features = {
        split: student.encode(run.pixels[split], student.single_view if split == "train" else None)
        for split in run.inputs.splits
    }
    norm = ScoreNorm.of(features["train"])
    norm.save(out / SCORE_NORM_FILE)
    report = _build_report(run, student, features, norm, epochs)
    report = report.model_copy(update=_joint_and_calibration(run, student, features, norm))
    images = _draw_images(run, report, out)
    report = report.model_copy(update={**images, "finished_at": datetime.now(UTC)})
    names = run.bank.names
    write_report(report, out, similarity=_similarity(run.banks["name"], run.bank), names=names)
    return report


def _build_report(
    run: RunInputs,
    student: Student,
    features: Mapping[SplitName, Tensor],
    norm: ScoreNorm,
    epochs: tuple[Epoch, ...],
) -> Report:
    """The report without image files, from the student's features [images, dim] of each split."""
    teacher, splits = run.inputs.teacher, run.inputs.splits
    return Report(
        config=run.config,
        release_id=run.release.id or None,
        release_hash=run.release.hash,
        label_set=run.release.label_set,
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_dim=teacher.dim,
        student_parameters=sum(parameter.numel() for parameter in student.parameters()),
        preflight=run.checks,
        seen_top1_last_epochs=_last_epochs_accuracy(epochs),
        epochs=epochs,
        accuracies=(
            *run.teacher_rows,
            *accuracies("student", splits, run.banks, run.bank, features, norm),
        ),
        imitation=tuple(
            imitation(
                split,
                features[split],
                run.features[split],
                run.bank.select(splits[split].keys).features,
                device=teacher.device,
            )
            for split in splits
        ),
        diagnostics=tuple(
            diagnose(bank.features, bank.names, text, device=teacher.device)
            for text, bank in run.banks.items()
        ),
        pulled_apart=pulled_apart(run.banks["name"], run.bank, run.release),
        flagged_texts=run.bank.flagged,
        versions=_versions(),
        started_at=run.started_at,
        finished_at=datetime.now(UTC),
    )


def _joint_and_calibration(
    run: RunInputs, student: Student, features: Mapping[SplitName, Tensor], norm: ScoreNorm
) -> dict[str, object]:
    """The fields `joint` and `calibration` of the report."""
    bank = run.bank
    splits = {split: run.inputs.splits[split] for split in EVALUATED if split in run.inputs.splits}
    by_model: dict[Literal["teacher", "student"], dict[Literal["seen", "unseen"], Tensor]] = {
        "teacher": {split: run.features[split] for split in splits},
        "student": {split: features[split] for split in splits},
    }
    tested = by_model["student"]
    bias, text_photos = _choose_for_new_classes(run, student, features["seen"])
    names = look_alikes_of(run.release)
    calibration = calibrate(
        tested,
        splits,
        bank,
        temperature=run.config.temperature,
        seen_bias=bias,
        norm=norm,
        look_alikes=run.inputs.teacher.encode_text(list(map(prompt_of, names))) if names else None,
    ).model_copy(update={"text_photos": text_photos})
    if "unseen" not in splits:
        return {"calibration": calibration}
    rows = [
        joint_accuracy(model, model_features, splits, text_bank, text=text)
        for model, model_features in by_model.items()
        for text, text_bank in run.banks.items()
    ]
    rows.append(joint_accuracy("student", tested, splits, bank, bias=bias))
    return {"joint": tuple(rows), "calibration": calibration}


def _choose_for_new_classes(
    run: RunInputs, student: Student, features: Tensor
) -> tuple[float, float]:
    """The bias against seen classes, and the weight of a text in photos; see `left_out`.

    `features` [images, dim] are the student's features of the seen split. If there are many images,
    evenly spaced ones are used.
    """
    train, seen = run.inputs.splits["train"], run.inputs.splits["seen"]
    text = run.bank.select(train.keys).features
    rows, tested = spaced(len(train)), spaced(len(seen))
    targets = seen_targets(run)[tested]
    folds = leave_out(
        SeenImages(student.encode_backbone(run.pixels["train"], rows), train.targets[rows]),
        SeenImages(student.encode_backbone(run.pixels["seen"], tested), targets),
        text,
        new_classes_expected(run),
    )
    cosines = normalize(features[tested], dim=1) @ text.T
    bias = choose_seen_bias(folds, targets, cosines, text)
    return bias, choose_text_photos(folds, targets, text)


def new_classes_expected(run: RunInputs) -> int:
    """The number of unseen classes; without any, one per SEEN_PER_NEW_CLASS seen classes."""
    splits = run.inputs.splits
    if "unseen" in splits:
        return len(splits["unseen"].keys)
    return len(splits["train"].keys) // SEEN_PER_NEW_CLASS


def seen_targets(run: RunInputs) -> Tensor:
    """The targets [images] of the validation images, as indices of the training classes."""
    train, seen = run.inputs.splits["train"], run.inputs.splits["seen"]
    index_of = {key: index for index, key in enumerate(train.keys)}
    return torch.tensor([index_of[key] for key in seen.keys])[seen.targets]


def spaced(count: int) -> Tensor:
    """At most LEFT_OUT_IMAGES evenly spaced indices of `count` images."""
    most = min(count, LEFT_OUT_IMAGES)
    return torch.linspace(0, count - 1, most, dtype=torch.float64).long()


def accuracies(
    model: Literal["teacher", "student"],
    splits: Mapping[SplitName, Split],
    banks: Mapping[str, TextBank],
    chosen: TextBank,
    features: Mapping[SplitName, Tensor],
    norm: ScoreNorm,
) -> tuple[Accuracy, ...]:
    """Accuracies with the cosines of each bank, and with the standardised scores of `chosen`.

    `features` [images, dim] of the model need not be normalised.
    """
    rows: list[tuple[str, TextBank, ScoreNorm | None]] = [
        *((text, bank, None) for text, bank in banks.items()),
        (NORMALISED, chosen, norm),
    ]
    return tuple(
        accuracy(
            model,
            split,
            features[split],
            splits[split].targets,
            splits[split].keys,
            bank,
            text=text,
            norm=scores,
        )
        for text, bank, scores in rows
        for split in EVALUATED
        if split in splits
    )


def _draw_images(
    run: RunInputs, report: Report, out: Path
) -> dict[str, Similarity | TextPlane | Thumbnails | None]:
    """Draw the image files of the report to `out`, and return the fields that describe them."""
    before, bank = run.banks["name"], run.bank
    named = _classes_in_pairs(report.diagnostics, report.pulled_apart, bank.names)
    on_map = _select_rows(named, len(bank.keys), MAP_CLASSES)
    map_keys = [bank.keys[row] for row in on_map]
    on_plane = _select_rows(named, len(bank.keys), PLANE_CLASSES)
    return {
        "similarity": draw_similarity(
            out,
            _similarity(before.select(map_keys), bank.select(map_keys)),
            [bank.names[row] for row in on_map],
        ),
        "text_plane": None if bank is before else text_plane(before, bank, on_plane),
        "thumbnails": draw_thumbnails(
            out,
            run.inputs.splits["train"],  # never test images
            dict(zip(bank.keys, bank.names, strict=True)),
            [bank.keys[row] for row in named],
        ),
    }


def render_report(folder: Path) -> Path:
    """Write report.html of the finished run in `folder` again, and return its path.

    Raises:
        DataError: there is no finished run.
        TextError: a text bank of the run is missing or damaged.
    """
    report = read_report(folder)
    before, bank = TextBank.load(folder / NAME_BANK_FILE), TextBank.load(folder / BANK_FILE)
    write_report(report, folder, similarity=_similarity(before, bank), names=bank.names)
    return folder / "report.html"


def _similarity(before: TextBank, after: TextBank) -> dict[str, NDArray[np.float32]]:
    """Cosines [classes, classes] between the texts of each bank, by strategy."""
    banks = {bank.strategy: bank.features for bank in (before, after)}
    return {text: (unit @ unit.T).numpy() for text, unit in banks.items()}


def _classes_in_pairs(
    diagnostics: Sequence[TextDiagnostics], apart: Sequence[PulledApart], names: Sequence[str]
) -> list[int]:
    """Rows of the classes that occur in listed pairs, except those of the control."""
    pairs: list[ConfusablePair | PulledApart] = [*apart]
    pairs += [pair for bank in diagnostics if bank.text != CONTROL for pair in bank.confusable]
    return list(dict.fromkeys(names.index(name) for pair in pairs for name in (pair.a, pair.b)))


def _select_rows(preferred: Sequence[int], total: int, limit: int) -> list[int]:
    """At most `limit` of `total` rows, sorted: `preferred` rows, and evenly spaced others."""
    if total <= limit:
        return list(range(total))
    chosen = set(preferred[:limit])
    others = [row for row in range(total) if row not in chosen]
    free = limit - len(chosen)
    return sorted([*chosen, *(others[index * len(others) // free] for index in range(free))])


def _last_epochs_accuracy(epochs: Sequence[Epoch]) -> float | None:
    """Mean seen accuracy of the last epochs, as in the paper; None without epochs."""
    last = [epoch.seen_top1 for epoch in epochs[-LAST_EPOCHS:]]
    return statistics.fmean(last) if last else None


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "open_clip_torch", "timm")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
