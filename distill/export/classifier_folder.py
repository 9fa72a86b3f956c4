"""From a finished run to a classifier folder: encode, check against PyTorch, calibrate, write."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from contract import Calibration, Report
from distill.data.pixels import Progress
from distill.embeddings.prompts import prefix_of, prompts_of
from distill.evaluation.accuracy import predict, score
from distill.evaluation.figures import EvaluatedSplit
from distill.export.finished_run import FinishedRun
from distill.export.model_card import model_card
from distill.export.onnx import image_encoder, text_encoder
from distill.export.tokenizer import tokenizer_json
from distill.export.verify import (
    BATCH,
    FormatRow,
    Speed,
    check_features,
    check_texts,
    measure_speed,
    onnx_features,
)
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

STEPS: Final = 5  # of an export: image encoder, text encoder, comparison, speed, files
PACKAGES: Final = ("enrich-distill", "torch", "timm", "open_clip_torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """A written classifier folder. `feature_difference`, `text_cosine`: the worst ones measured."""

    folder: Path
    manifest: Manifest
    rows: tuple[FormatRow, ...]
    feature_difference: float
    text_cosine: float


def export_run(
    run: FinishedRun, out: Path, *, cache: Path | None = None, progress: Progress
) -> Exported:
    """Write the classifier folder `out`, after every part was checked against PyTorch.

    `cache`, a folder, keeps the text encoder, which is the same for all students of a teacher.
    `progress` is called as (steps done, STEPS).

    Raises:
        ModelError: a model cannot be exported, or gives something else than PyTorch.
        ClassifierError: the folder cannot be written, or holds something else.
    """
    check_target(out)  # before minutes are spent
    progress(0, STEPS)
    image_model = image_encoder(run.student, run.pixels["seen"].shape[-1])
    progress(1, STEPS)
    texts = _export_texts(run, cache)
    progress(2, STEPS)
    session = open_session(image_model)
    eager = {name: run.student.encode(pixels) for name, pixels in run.pixels.items()}
    exported = {name: onnx_features(session, pixels) for name, pixels in run.pixels.items()}
    difference = max(
        check_features(eager[name], exported[name], run.bank.select(split.keys).features, name)
        for name, split in run.splits.items()
    )
    progress(3, STEPS)
    images = run.pixels["seen"]
    speed = measure_speed(lambda pixels: onnx_features(session, pixels), images)
    rows = (
        _row("PyTorch eager", None, measure_speed(run.student.encode, images), run, eager),
        _row("ONNX Runtime", len(image_model) / 1e6, speed, run, exported),
        _teacher_row(run),
    )
    progress(4, STEPS)
    manifest = _manifest(run, texts, rows)
    files = {
        IMAGE_ENCODER: image_model,
        TEXT_ENCODER: texts.encoder,
        TOKENIZER: texts.tokenizer,
        TEXT_BANK: save({"tensor": run.bank.features.contiguous()}),
        MODEL_CARD: model_card(manifest, run.report, rows).encode(),
    }
    entries = {name: file_entry(content) for name, content in files.items()}
    manifest = manifest.model_copy(update={"files": entries})
    write_folder(out, manifest, files)
    progress(STEPS, STEPS)
    return Exported(out, manifest, rows, difference, texts.least_cosine)


@dataclass(frozen=True)
class _ExportedTexts:
    """The text side of a classifier. `prompts` of each class by its key."""

    encoder: bytes
    tokenizer: bytes
    cleaning: TextCleaning
    prompts: Mapping[str, tuple[str, ...]]
    least_cosine: float  # of a class feature with that of the run's bank


def _export_texts(run: FinishedRun, cache: Path | None) -> _ExportedTexts:
    """Export the teacher's text tower, and check it on all texts of the release."""
    model = text_encoder(run.teacher, cache)
    tokenizer, cleaning = tokenizer_json(run.teacher)
    labels, strategy = {label.key: label for label in run.release.labels}, run.bank.strategy
    prompts = {key: prompts_of(labels[key], strategy) for key in run.bank.keys}
    prefixes = {key: prefix_of(labels[key], strategy) for key in run.bank.keys}
    encoder = TextEncoder(
        model, tokenizer, context_length=run.teacher.context_length, cleaning=cleaning
    )
    least_cosine = check_texts(encoder, prompts, prefixes, run.bank)
    return _ExportedTexts(model, tokenizer, cleaning, prompts, least_cosine)


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


def _manifest(run: FinishedRun, texts: _ExportedTexts, rows: Sequence[FormatRow]) -> Manifest:
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
        text=_text_info(run, texts.cleaning),
        calibration=report.calibration or Calibration(temperature=report.config.temperature),
        accuracies=_accuracies(report, rows),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        classes=tuple(
            ClassEntry(
                key=key,
                name=name,
                texts=texts.prompts[key],
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
