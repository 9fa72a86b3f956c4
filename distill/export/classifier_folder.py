"""Exports a finished run as a classifier folder and verifies it against PyTorch."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from contract import Calibration, Report
from distill.data.pixels import Progress
from distill.embeddings.attributes import attributes_of
from distill.embeddings.class_prompts import prefix_of, prompts_of
from distill.embeddings.look_alikes import prompt_of
from distill.embeddings.text_bank import TextBank
from distill.evaluation.figures import EvaluatedSplit, unknown_figures
from distill.evaluation.unknown import Scorer
from distill.export.chart import speed_chart
from distill.export.finished_run import FinishedRun
from distill.export.formats import check_formats
from distill.export.image_encoders import FormatOptions, ImageEncoders, export_encoders
from distill.export.model_card import model_card, published_name
from distill.export.onnx import baked_classifier, text_encoder
from distill.export.open_clip import loaded, open_clip_files
from distill.export.table import load_rival, open_clip_row, rival_row, teacher_row
from distill.export.tokenizer import tokenizer_json
from distill.export.verify import FormatRow, check_features, check_texts
from distill.runtime.manifest import (
    BAKED,
    MODEL_CARD,
    OPEN_CLIP,
    PHOTO_STATISTICS,
    SPEED_CHART,
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
from distill.runtime.photo_class import PhotoStatistics
from distill.runtime.text_encoder import TextEncoder
from distill.runtime.write_folder import check_nothing_added, check_target, write_folder

STEPS: Final = 5  # of the progress: texts, features, formats, other models, files
PACKAGES: Final = ("enrich-distill", "torch", "timm", "open_clip_torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class ExportOptions(FormatOptions):
    """Which files an export writes besides image and text encoder."""

    bake: bool = False  # a model from pixels to probabilities of the current classes
    rivals: tuple[str, ...] = ()  # open_clip models to compare with
    open_clip: bool = False  # the student with the teacher's text tower as an open_clip folder
    look_alikes: tuple[str, ...] = ()  # names; images most similar to one of them are rejected


@dataclass(frozen=True)
class Exported:
    """A written classifier folder.

    `feature_difference` is the largest difference of a feature from PyTorch's, `text_cosine` the
    smallest cosine between text features of both.
    """

    folder: Path
    manifest: Manifest
    rows: tuple[FormatRow, ...]
    feature_difference: float
    text_cosine: float
    remarks: tuple[str, ...]  # lines for people, such as which image encoder is used and why


def export_run(
    run: FinishedRun,
    out: Path,
    *,
    options: ExportOptions | None = None,
    cache: Path | None = None,
    progress: Progress,
) -> Exported:
    """Write the classifier folder `out` after verifying every part against PyTorch.

    The folder `cache` keeps the text encoder, which is the same for all students of a teacher.
    `progress` is called with (steps done, STEPS).

    Raises:
        ModelError: a model cannot be exported, differs from PyTorch, or loses too much accuracy by
            quantisation; or a rival cannot be loaded.
        ClassifierError: the folder cannot be written, has other files, or has a classifier with
            classes that were added to it.
    """
    options = options or ExportOptions()
    check_target(out)  # reports errors before the slow part
    check_nothing_added(out)
    check_formats(options.formats)
    rivals = [load_rival(name) for name in options.rivals]
    in_open_clip = _in_open_clip(run) if options.open_clip else {}
    progress(0, STEPS)
    texts = _export_texts(run, options.look_alikes, cache)
    progress(1, STEPS)
    eager = {name: run.student.encode(pixels) for name, pixels in run.pixels.items()}
    progress(2, STEPS)
    encoders = export_encoders(run, eager, options)
    rows, remarks = [*encoders.rows], [*encoders.remarks]
    progress(3, STEPS)
    if in_open_clip:
        rows.append(_open_clip_row(in_open_clip, run, eager))
        remarks += _remarks_on_open_clip(run)
    rows += [teacher_row(run), *(rival_row(rival, run, cache) for rival in rivals)]
    progress(4, STEPS)
    manifest = _manifest(run, texts, encoders).model_copy(
        update={"look_alikes": options.look_alikes}
    )
    if options.look_alikes:
        manifest = _with_unknown_scores(manifest, run, eager, texts.look_alike_features)
    files = encoders.files | {TEXT_ENCODER: texts.encoder, TOKENIZER: texts.tokenizer}
    if options.bake:
        size = run.pixels["seen"].shape[-1]
        files[BAKED] = baked_classifier(run.student, size, run.bank.features, *_biases(manifest))
    files |= _data_files(run, texts, eager["seen"])
    published = [replace(row, name=published_name(row.name)) for row in rows]
    files[SPEED_CHART] = speed_chart(published, len(encoders.rows))
    card = model_card(manifest, run.report, run.release.sources, published, remarks)
    files[MODEL_CARD] = card.encode()
    entries = {name: file_entry(content) for name, content in files.items()}
    manifest = manifest.model_copy(update={"files": entries})
    check_nothing_added(out)  # by a server, in the meantime
    # Not listed in the manifest: the classifier does not read it, and its classes may change.
    write_folder(out, manifest, files | {f"{OPEN_CLIP}/{k}": v for k, v in in_open_clip.items()})
    progress(STEPS, STEPS)
    return Exported(
        out, manifest, tuple(rows), encoders.difference, texts.min_cosine, tuple(remarks)
    )


def _data_files(run: FinishedRun, texts: "_ExportedTexts", seen: Tensor) -> dict[str, bytes]:
    """The text features, and the statistics of the features `seen` [images, dim] of seen photos."""
    statistics = PhotoStatistics.of(normalize(seen, dim=1).numpy())
    bank = save(
        {
            "tensor": run.bank.features.contiguous(),
            "attributes": texts.attribute_features,
            "look_alikes": texts.look_alike_features,
        }
    )
    return {PHOTO_STATISTICS: statistics.save(), TEXT_BANK: bank}


def _in_open_clip(run: FinishedRun) -> dict[str, bytes]:
    return open_clip_files(
        run.student,
        run.teacher,
        name=run.report.config.student,
        image_size=run.report.config.image_size,
        temperature=_calibration(run.report).temperature,
    )


def _open_clip_row(
    files: Mapping[str, bytes], run: FinishedRun, eager: Mapping[EvaluatedSplit, Tensor]
) -> FormatRow:
    """The student loaded by open_clip, with open_clip's preprocessing and text tower.

    Raises:
        ModelError: open_clip's features differ from the student's for the whole image.
    """
    whole = run.student.test_views == "whole"
    with loaded(files) as model:
        row, features = open_clip_row(model, run, None)
    for name, split in run.splits.items():
        expected = eager[name] if whole else run.student.encode(run.pixels[name], "whole")
        text = run.bank.select(split.keys).features
        check_features(expected, features[name], text, name, model_name="the student in open_clip")
    return replace(row, name="open_clip")


def _remarks_on_open_clip(run: FinishedRun) -> list[str]:
    if run.student.test_views == "whole":
        return []
    return [
        "open_clip encodes the whole image once, but the student was evaluated on "
        f'{run.student.test_views} views: train it with test_views = "whole" for equal numbers'
    ]


@dataclass(frozen=True)
class _ExportedTexts:
    """The text encoder and the texts of a classifier; `prompts` and `attributes` by class key."""

    encoder: bytes
    tokenizer: bytes
    cleaning: TextCleaning
    prompts: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, tuple[str, ...]]
    attribute_features: Tensor  # unit, [attributes, dim], in the order of the bank's classes
    look_alike_features: Tensor  # unit, [look-alikes, dim]
    min_cosine: float  # between exported class features and those of the run's bank


def _export_texts(
    run: FinishedRun, look_alikes: Sequence[str], cache: Path | None
) -> _ExportedTexts:
    """Export the teacher's text tower, verify it on all texts of the release, and encode the
    attributes and the look-alikes with it.
    """
    model = text_encoder(run.teacher, cache)
    tokenizer, cleaning = tokenizer_json(run.teacher)
    labels, strategy = {label.key: label for label in run.release.labels}, run.bank.strategy
    prompts = {key: prompts_of(labels[key], strategy) for key in run.bank.keys}
    prefixes = {key: prefix_of(labels[key], strategy) for key in run.bank.keys}
    encoder = TextEncoder(
        model, tokenizer, context_length=run.teacher.context_length, cleaning=cleaning
    )
    min_cosine = check_texts(encoder, prompts, prefixes, run.bank)
    attributes = {key: attributes_of(labels[key]) for key in run.bank.keys}
    all_attributes = [text for key in run.bank.keys for text in attributes[key]]
    return _ExportedTexts(
        encoder=model,
        tokenizer=tokenizer,
        cleaning=cleaning,
        prompts=prompts,
        attributes=attributes,
        attribute_features=_encode_each(encoder, all_attributes, run.bank),
        look_alike_features=_encode_each(encoder, list(map(prompt_of, look_alikes)), run.bank),
        min_cosine=min_cosine,
    )


def _encode_each(encoder: TextEncoder, texts: Sequence[str], bank: TextBank) -> Tensor:
    """Unit features [texts, dim]; `texts` may be empty."""
    return torch.from_numpy(encoder.encode_each(texts)) if texts else bank.features[:0].clone()


def _with_unknown_scores(
    manifest: Manifest,
    run: FinishedRun,
    features: Mapping[EvaluatedSplit, Tensor],
    look_alikes: Tensor,
) -> Manifest:
    """`manifest` with the evaluation of scores for unknown images, if there are unseen images.

    `features` [images, dim] are those of the student, by split.
    """
    if "unseen" not in features:
        return manifest
    text, calibration = run.bank.select(run.splits["seen"].keys).features, manifest.calibration
    scorer = Scorer(text, calibration.temperature, run.score_norm, look_alikes)
    figures = calibration.model_copy(update=unknown_figures(features, scorer))
    return manifest.model_copy(update={"calibration": figures})


def _manifest(run: FinishedRun, texts: _ExportedTexts, encoders: ImageEncoders) -> Manifest:
    report, release, bank = run.report, run.release, run.bank
    unseen = set(run.splits["unseen"].keys) if "unseen" in run.splits else set()
    return Manifest(
        created_at=datetime.now(UTC),
        teacher=TeacherInfo(
            name=published_name(report.teacher),
            fingerprint=report.teacher_fingerprint,
            dim=report.teacher_dim,
        ),
        student=StudentInfo(
            name=report.config.student,
            parameters=report.student_parameters,
            test_views=run.student.test_views,
        ),
        release=ReleaseInfo(name=release.name, label_set=release.label_set, hash=release.hash),
        preprocessing=Preprocessing(image_size=report.config.image_size),
        text=_text_info(run, texts.cleaning),
        calibration=_calibration(report),
        accuracies=_accuracies(report, encoders.measured),
        latency_ms=encoders.measured.speed.ms,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        classes=tuple(
            ClassEntry(
                key=key,
                name=name,
                texts=texts.prompts[key],
                seen=key not in unseen,
                origin=f"release {release.hash}",
                attributes=texts.attributes[key],
            )
            for key, name in zip(bank.keys, bank.names, strict=True)
        ),
        image_encoder=encoders.used,
        files={},
    )


def _calibration(report: Report) -> Calibration:
    return report.calibration or Calibration(temperature=report.config.temperature)


def _accuracies(report: Report, measured: FormatRow) -> dict[str, float]:
    """Top-1 in percent: of the exported encoder on each split, and of the run on all classes."""
    if measured.unseen is None:
        return {"seen": measured.seen}
    joint = next(row for row in reversed(report.joint) if row.model == "student")
    return {
        "seen": measured.seen,
        "unseen": measured.unseen,
        "joint_seen": joint.seen,
        "joint_unseen": joint.unseen,
        "joint_harmonic_mean": joint.harmonic_mean,
        "joint_ausuc": 100 * joint.ausuc,
    }


def _biases(manifest: Manifest) -> tuple[Tensor, float]:
    """The bias [classes] subtracted from the cosine of each class, and the temperature."""
    calibration = manifest.calibration
    seen = torch.tensor([float(entry.seen) for entry in manifest.classes])
    return calibration.seen_bias * seen, calibration.temperature


def nearest_limit(bank: Tensor) -> float:
    """The largest cosine that the text of a new class may have with another: halfway between the
    most similar pair of unit text features `bank` [classes, dim] and 1.
    """
    if len(bank) < 2:
        return 1.0
    cosines = (bank @ bank.T).fill_diagonal_(-1)
    return (1 + min(float(cosines.max()), 1.0)) / 2


def _text_info(run: FinishedRun, cleaning: TextCleaning) -> TextInfo:
    """How texts are built, with the prompt version and the context of most labels."""
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
