"""From a finished run to a classifier folder: encode, check against PyTorch, calibrate, write."""

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from contract import Calibration, Release, Report
from distill.data.pixels import Progress, load_pixels
from distill.data.releases import read_release
from distill.data.splits import Split, scan_splits
from distill.embeddings.prompts import prefix_of, prompts_of
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, ModelError
from distill.evaluation.accuracy import predict, score
from distill.evaluation.report import read_report
from distill.export.model_card import model_card
from distill.export.onnx import image_encoder, text_encoder
from distill.export.tokenizer import tokenizer_json
from distill.export.verify import (
    BATCH,
    EvaluatedSplit,
    FormatRow,
    Speed,
    check_features,
    check_texts,
    measure_speed,
    onnx_features,
)
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import Student, load_student
from distill.models.teacher import Teacher, load_teacher
from distill.runtime.classifier import check_target, write_folder
from distill.runtime.manifest import (
    IMAGE_ENCODER,
    MODEL_CARD,
    TEXT_BANK,
    TEXT_ENCODER,
    TOKENIZER,
    ClassEntry,
    Manifest,
    Preprocessing,
    ReleaseInfo,
    StudentInfo,
    TeacherInfo,
    TextCleaning,
    TextInfo,
    file_entry,
)
from distill.runtime.text_encoder import TextEncoder, open_session

BANK_FILE: Final = "text_bank.safetensors"  # in the folder of a run
RELEASE_FILE: Final = "release.json"
EVALUATED: Final[tuple[EvaluatedSplit, ...]] = ("seen", "unseen")
PACKAGES: Final = ("enrich-distill", "torch", "timm", "open_clip_torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind, and the validation images that it is judged on."""

    report: Report
    release: Release
    bank: TextBank
    student: Student
    teacher: Teacher
    splits: Mapping[EvaluatedSplit, Split]
    pixels: Mapping[EvaluatedSplit, Tensor]  # uint8 [images, 3, size, size]


@dataclass(frozen=True)
class Exported:
    """A written classifier folder. `feature_difference`, `text_cosine`: the worst ones measured."""

    folder: Path
    manifest: Manifest
    rows: tuple[FormatRow, ...]
    feature_difference: float
    text_cosine: float


def load_run(
    folder: Path,
    *,
    data: Path | None = None,
    teacher: str | None = None,
    cache: Path,
    bar: Callable[[str], Progress],
) -> FinishedRun:
    """What is needed of the finished run in `folder`.

    `data` and `teacher` say where the images and the teacher lie now, if elsewhere.

    Raises:
        UserError: there is no finished run, its images cannot be read, or its teacher is another.
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
            f"the teacher {loaded.name} has other weights than the one of the run {folder}: give "
            "the right one with --teacher"
        )
    found = scan_splits(data or report.config.data, bank.keys, EVALUATED, cache=cache)
    splits = {name: found[name] for name in EVALUATED if name in found}
    pixels = {
        name: torch.from_numpy(load_pixels(split, size, cache, bar(f"Pixels, {name}")))
        for name, split in splits.items()
    }
    return FinishedRun(report, release, bank, student, loaded, splits, pixels)


def export_run(run: FinishedRun, out: Path, *, cache: Path | None = None) -> Exported:
    """Write the classifier folder `out`, after every part was checked against PyTorch.

    `cache`, a folder, keeps the text encoder, which is the same for all students of a teacher.

    Raises:
        ModelError: a model cannot be exported, or gives something else than PyTorch.
        ClassifierError: the folder cannot be written, or holds something else.
    """
    check_target(out)  # before minutes are spent
    size = run.pixels["seen"].shape[-1]
    tokenizer, cleaning = tokenizer_json(run.teacher)
    files = {
        IMAGE_ENCODER: image_encoder(run.student, size),
        TEXT_ENCODER: text_encoder(run.teacher, cache),
        TOKENIZER: tokenizer,
        TEXT_BANK: save({"tensor": run.bank.features.contiguous()}),
    }
    labels = {label.key: label for label in run.release.labels}
    groups = {key: prompts_of(labels[key], run.bank.strategy) for key in run.bank.keys}
    text_cosine = check_texts(
        TextEncoder(
            files[TEXT_ENCODER],
            tokenizer,
            context_length=run.teacher.context_length,
            cleaning=cleaning,
        ),
        groups,
        {key: prefix_of(labels[key], run.bank.strategy) for key in run.bank.keys},
        run.bank,
    )
    session = open_session(files[IMAGE_ENCODER])
    eager = {name: run.student.encode(pixels) for name, pixels in run.pixels.items()}
    exported = {name: onnx_features(session, pixels) for name, pixels in run.pixels.items()}
    difference = max(
        check_features(eager[name], exported[name], run.bank.select(split.keys).features, name)
        for name, split in run.splits.items()
    )
    rows = (
        _row(
            "PyTorch eager", None, measure_speed(run.student.encode, run.pixels["seen"]), run, eager
        ),
        _row(
            "ONNX Runtime",
            len(files[IMAGE_ENCODER]) / 1e6,
            measure_speed(lambda pixels: onnx_features(session, pixels), run.pixels["seen"]),
            run,
            exported,
        ),
        _teacher_row(run),
    )
    manifest = _manifest(run, groups, cleaning, rows)
    files[MODEL_CARD] = model_card(manifest, run.report, rows).encode()
    entries = {name: file_entry(content) for name, content in files.items()}
    manifest = manifest.model_copy(update={"files": entries})
    write_folder(out, manifest, files)
    return Exported(out, manifest, rows, difference, text_cosine)


def _row(
    name: str,
    megabytes: float | None,
    speed: Speed,
    run: FinishedRun,
    features: Mapping[EvaluatedSplit, Tensor],
) -> FormatRow:
    top1 = {}
    for split_name, split in run.splits.items():
        found = predict(features[split_name], run.bank.select(split.keys).features)
        top1[split_name], _ = score(found, split.targets, len(split.keys))
    return FormatRow(name, megabytes, speed, top1["seen"], top1.get("unseen"))


def _teacher_row(run: FinishedRun) -> FormatRow:
    """The teacher at its own image size, with the accuracies of the run's report."""
    size = run.teacher.image_size
    images = torch.rand(BATCH, 3, size, size)
    visual = cast(nn.Module, run.teacher.model.visual)
    size_bytes = sum(each.numel() * each.element_size() for each in visual.parameters())
    top1 = {
        row.split: row.top1
        for row in run.report.accuracies
        if row.model == "teacher" and row.text == run.bank.strategy
    }
    speed = measure_speed(run.teacher.encode_image, images)
    return FormatRow("teacher", size_bytes / 1e6, speed, top1["seen"], top1.get("unseen"))


def _manifest(
    run: FinishedRun,
    groups: Mapping[str, tuple[str, ...]],
    cleaning: TextCleaning,
    rows: Sequence[FormatRow],
) -> Manifest:
    report, release, bank = run.report, run.release, run.bank
    unseen = set(run.splits["unseen"].keys) if "unseen" in run.splits else set()
    return Manifest(
        created_at=datetime.now(UTC),
        teacher=TeacherInfo(
            name=report.teacher, fingerprint=report.teacher_fingerprint, dim=report.teacher_dim
        ),
        student=StudentInfo(
            name=report.config.student,
            parameters=report.student_parameters,
            test_views=run.student.test_views,
        ),
        release=ReleaseInfo(name=release.name, label_set=release.label_set, hash=release.hash),
        preprocessing=Preprocessing(image_size=report.config.image_size),
        text=_text_info(run, cleaning),
        calibration=report.calibration or Calibration(temperature=report.config.temperature),
        accuracies=_accuracies(report, rows),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        classes=tuple(
            ClassEntry(
                key=key,
                name=name,
                texts=groups[key],
                seen=key not in unseen,
                origin=f"release {release.hash}",
            )
            for key, name in zip(bank.keys, bank.names, strict=True)
        ),
        files={},
    )


def _accuracies(report: Report, rows: Sequence[FormatRow]) -> dict[str, float]:
    """Top-1 in percent: of the exported encoder alone, and of the run where all classes compete."""
    exported = next(row for row in rows if row.megabytes is not None)
    if exported.unseen is None:
        return {"seen": exported.seen}
    joint = next(row for row in reversed(report.joint) if row.model == "student")
    return {
        "seen": exported.seen,
        "unseen": exported.unseen,
        "joint_seen": joint.seen,
        "joint_unseen": joint.unseen,
        "joint_harmonic_mean": joint.harmonic_mean,
        "joint_ausuc": 100 * joint.ausuc,
    }


def nearest_limit(bank: Tensor) -> float:
    """How near the text of a new class may lie to another one's: midway from the nearest pair of
    unit text features `bank` [classes, dim] to a cosine of 1.
    """
    if len(bank) < 2:
        return 1.0
    cosines = (bank @ bank.T).fill_diagonal_(-1)
    return (1 + min(float(cosines.max()), 1.0)) / 2


def _text_info(run: FinishedRun, cleaning: TextCleaning) -> TextInfo:
    """How texts are made, and the prompt version and the context that most labels have."""
    prompts = Counter((x.prompt, x.prompt_version) for x in run.release.sources if x.prompt)
    contexts = Counter(label.context for label in run.release.labels)
    prompt, number = prompts.most_common(1)[0][0] if prompts else (None, None)
    return TextInfo(
        strategy=run.bank.strategy,
        context_length=run.teacher.context_length,
        cleaning=cleaning,
        prompt=prompt,
        prompt_version=number,
        context=contexts.most_common(1)[0][0],
        nearest_limit=nearest_limit(run.bank.features),
    )
