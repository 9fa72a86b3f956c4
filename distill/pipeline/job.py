"""One training job from configuration and release to student and report.

Everything with files and models around the pure training loop happens here, in the order in which
it is read: check, encode, train, evaluate, report.
"""

import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import (
    Accuracy,
    ConfusablePair,
    Epoch,
    EventKind,
    Preflight,
    PulledApart,
    Release,
    Report,
    SplitName,
    TextDiagnostics,
    TextStrategy,
    TrainConfig,
)
from distill.data.atomic_file import write_atomically
from distill.data.pixels import Progress
from distill.data.releases import shuffle_texts
from distill.data.splits import Split
from distill.embeddings.captions import caption_features, read_captions
from distill.embeddings.image_features import image_embeddings, view_embeddings
from distill.embeddings.text_bank import TextBank, build_text_bank
from distill.errors import DataError
from distill.evaluation.accuracy import accuracy, imitation
from distill.evaluation.diagnostics import diagnose, pulled_apart, text_plane
from distill.evaluation.pictures import draw_similarity, draw_thumbnails
from distill.evaluation.report import CONTROL, NORMALISED, read_report, write_report
from distill.evaluation.score_norm import FILE as SCORE_NORM_FILE
from distill.evaluation.score_norm import ScoreNorm
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import Student, build_student, save_student
from distill.models.teacher import Teacher, load_teacher
from distill.pipeline.preflight import SPLITS, preflight, scan_splits
from distill.training.checkpoint import Checkpoint
from distill.training.distributed import processes
from distill.training.loop import TrainingData, train
from distill.training.malloc_tuning import keep_freed_memory

OnEvent = Callable[[EventKind, dict[str, Any]], None]
BANK_FILE: Final = "text_bank.safetensors"  # of the strategy that the student was trained on
NAME_BANK_FILE: Final = "name_bank.safetensors"
RELEASE_FILE: Final = "release.json"
LAST_EPOCHS: Final = 5
PROGRESS_SECONDS: Final = 1.0  # each event becomes a row in the service's database
DRAWN_CLASSES: Final = 1000  # pixels of a similarity map's side
MOVED_CLASSES: Final = 250  # arrows on the plane of texts
EVALUATED: Final[tuple[Literal["seen", "unseen"], ...]] = ("seen", "unseen")


@dataclass(frozen=True)
class _Prepared:
    """All that is known before the first step."""

    splits: Mapping[SplitName, Split]
    pixels: Mapping[SplitName, Tensor]
    found: Preflight
    teacher: Teacher
    student: Student
    banks: Mapping[str, TextBank]  # plain names, the chosen strategy, the control
    bank: TextBank  # the chosen one
    features: Mapping[SplitName, Tensor]  # the teacher's, of the clean images
    views: tuple[Tensor, Tensor] | None  # stored views and the teacher's features of them
    captions: Tensor | None
    rows: tuple[Accuracy, ...]  # the teacher's


def run_job(
    config: TrainConfig,
    release: Release,
    out: Path,
    *,
    cache: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> Report:
    """Train a student and write report.json, report.html, the student and its text bank to `out`.

    Where torchrun started several processes, all of them call this; the first one alone tells
    events and writes.

    Raises:
        UserError: something is missing or does not fit; said before the first step where possible.
        Interrupted: `should_stop` came true; a checkpoint in `out` lets it go on.
    """
    started = datetime.now(UTC)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    first = processes().is_main_process
    tell = on_event if first else _tell_nobody
    with processes().main_process_first():  # what it has encoded, the others find in the cache
        prepared = _prepare(config, release, out, cache=cache, on_event=tell)
    epochs = train(
        config,
        prepared.student,
        _training_data(prepared),
        checkpoint=Checkpoint(out / "checkpoint.safetensors", config, release.hash),
        resume=resume,
        on_epoch=lambda epoch: tell(EventKind.EPOCH, epoch.model_dump(mode="json")),
        on_step=_progress(tell)("Training"),
        should_stop=should_stop,
    )
    if first:
        _report(config, release, out, prepared, epochs, started)
    processes().wait_for_everyone()
    return read_report(out)


def _tell_nobody(_kind: EventKind, _data: dict[str, Any]) -> None:
    """For the processes beside the first."""


def _progress(on_event: OnEvent) -> Callable[[str], Progress]:
    def progress(phase: str) -> Progress:
        said = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= PROGRESS_SECONDS or done == total:
                said = time.monotonic()
                on_event(EventKind.PROGRESS, {"phase": phase, "step": done, "steps": total})

        return tell

    return progress


def _prepare(
    config: TrainConfig, release: Release, out: Path, *, cache: Path, on_event: OnEvent
) -> _Prepared:
    """Check everything that can be checked before hours are spent, and encode."""
    root = Path(config.data)
    progress = _progress(on_event)

    def log(message: str) -> None:
        on_event(EventKind.LOG, {"message": message})

    splits = scan_splits(root, release)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if processes().is_main_process:
            write_atomically(out / RELEASE_FILE, release.model_dump_json())
    except OSError as error:
        raise DataError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
    teacher = load_teacher(config.teacher)
    student = build_student(  # before anything is encoded: it may be impossible
        config.student,
        teacher.dim,
        image_size=config.image_size,
        pretrained=config.pretrained,
        weights=Path(config.weights) if config.weights is not None else None,
        output_stride=config.output_stride,
    )
    student.test_views = config.test_views
    found, pixels = preflight(
        config, release, splits, teacher, cache=cache, progress=progress, log=log
    )
    classes = (*splits["train"].keys, *splits["unseen"].keys)

    # Texts: the plain name, the chosen strategy, and the control with texts dealt out at random.
    releases = {"name": release}
    strategies: dict[str, TextStrategy] = {"name": "name"}
    if config.text_strategy != "name":
        releases[config.text_strategy] = release
        releases[CONTROL] = shuffle_texts(_only(release, classes), config.seed)
        strategies[config.text_strategy] = strategies[CONTROL] = config.text_strategy
    banks = {
        text: build_text_bank(teacher, releases[text], strategies[text], keys=classes, cache=cache)
        for text in releases
    }
    bank = banks[config.text_strategy]
    if processes().is_main_process:
        bank.save(out / BANK_FILE)
        banks["name"].save(out / NAME_BANK_FILE)
    if bank.flagged:
        log(
            f"{len(bank.flagged)} labels have texts longer than the teacher's "
            f"{teacher.context_length} tokens; each is encoded as the mean of its sentences"
        )

    captions = None
    if config.losses.cap and config.captions is not None:
        texts = read_captions(root / config.captions, root, splits["train"])
        log(f"captions for {sum(map(bool, texts))} of {len(texts)} training images")
        captions = caption_features(teacher, texts, cache=cache)

    # The teacher sees each image once.
    features = {
        word: image_embeddings(
            teacher, split, cache=cache, progress=progress(f"Teacher features, {word}")
        )
        for word, split in splits.items()
    }
    views = None
    if config.teacher_views:
        views = view_embeddings(
            teacher,
            splits["train"],
            config.teacher_views,
            cache=cache,
            progress=progress("Teacher features, views"),
        )
    norm = ScoreNorm.of(features["train"])
    rows = _accuracies("teacher", splits, features, banks, bank, norm)
    for row in rows:
        log(f"teacher, {row.text}, {row.split}: {row.top1:.1f} % top-1")
    return _Prepared(
        splits, pixels, found, teacher, student, banks, bank, features, views, captions, rows
    )


def _training_data(prepared: _Prepared) -> TrainingData:
    splits, pixels, bank = prepared.splits, prepared.pixels, prepared.bank
    views, imitated = prepared.views or (None, prepared.features["train"])
    return TrainingData(
        pixels=pixels["train"],
        targets=splits["train"].targets,
        teacher=imitated,
        views=views,
        text=bank.select(splits["train"].keys).features,
        captions=prepared.captions,
        seen_pixels=pixels["seen"],
        seen_targets=splits["seen"].targets,
        seen_text=bank.select(splits["seen"].keys).features,
    )


def _report(
    config: TrainConfig,
    release: Release,
    out: Path,
    prepared: _Prepared,
    epochs: tuple[Epoch, ...],
    started: datetime,
) -> None:
    """Write the student to `out`, and what it was worth."""
    splits, features, bank = prepared.splits, prepared.features, prepared.bank
    student = prepared.student
    teacher, before = prepared.teacher, prepared.banks["name"]
    save_student(
        student,
        out / STUDENT_FILE,
        name=config.student,
        dim=teacher.dim,
        image_size=config.image_size,
        teacher=config.teacher,
    )
    learned = {
        word: student.encode(prepared.pixels[word], student.one_view if word == "train" else None)
        for word in SPLITS
    }
    norm = ScoreNorm.of(learned["train"])
    norm.save(out / SCORE_NORM_FILE)
    student_rows = _accuracies("student", splits, learned, prepared.banks, bank, norm)
    diagnostics = tuple(
        diagnose(each.features, each.names, text) for text, each in prepared.banks.items()
    )
    apart = pulled_apart(before, bank, release)
    named = _named(diagnostics, apart, bank.names)
    drawn = _some(named, len(bank.keys), DRAWN_CLASSES)
    result = Report(
        config=config,
        release_id=release.id or None,
        release_hash=release.hash,
        label_set=release.label_set,
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_dim=teacher.dim,
        student_parameters=sum(p.numel() for p in student.parameters()),
        preflight=prepared.found,
        seen_top1_last_epochs=_last_epochs(epochs),
        epochs=epochs,
        accuracies=(*prepared.rows, *student_rows),
        imitation=tuple(
            imitation(word, learned[word], features[word], bank.select(splits[word].keys).features)
            for word in SPLITS
        ),
        diagnostics=diagnostics,
        pulled_apart=apart,
        similarity=draw_similarity(
            out,
            _similarity(
                *(each.select([bank.keys[row] for row in drawn]) for each in (before, bank))
            ),
            [bank.names[row] for row in drawn],
        ),
        text_plane=None
        if bank is before
        else text_plane(before, bank, _some(named, len(bank.keys), MOVED_CLASSES)),
        thumbnails=draw_thumbnails(
            out,
            splits["train"],  # the others are there to be tested on: nobody should look at them
            dict(zip(bank.keys, bank.names, strict=True)),
            [bank.keys[row] for row in named],
        ),
        flagged_texts=bank.flagged,
        versions=_versions(),
        started_at=started,
        finished_at=datetime.now(UTC),
    )
    write_report(result, out, similarity=_similarity(before, bank), names=bank.names)


def render_again(folder: Path) -> Path:
    """Write report.html of the finished run in `folder` once more; its path.

    Raises:
        DataError: there is no finished run.
        TextError: a text bank of the run is missing or cut off.
    """
    report = read_report(folder)
    before, bank = TextBank.load(folder / NAME_BANK_FILE), TextBank.load(folder / BANK_FILE)
    write_report(report, folder, similarity=_similarity(before, bank), names=bank.names)
    return folder / "report.html"


def _similarity(before: TextBank, after: TextBank) -> dict[str, NDArray[np.float32]]:
    """Cosines [classes, classes] between the texts of each bank, by strategy."""
    banks = {bank.strategy: bank.features for bank in (before, after)}
    return {text: (unit @ unit.T).numpy() for text, unit in banks.items()}


def _accuracies(
    model: Literal["teacher", "student"],
    splits: Mapping[SplitName, Split],
    features: Mapping[SplitName, Tensor],
    banks: Mapping[str, TextBank],
    chosen: TextBank,
    norm: ScoreNorm,
) -> tuple[Accuracy, ...]:
    """Of each bank by its cosines, and of the chosen one by scores that `norm` standardises."""
    ways: list[tuple[str, TextBank, ScoreNorm | None]] = [
        *((text, bank, None) for text, bank in banks.items()),
        (NORMALISED, chosen, norm),
    ]
    return tuple(
        accuracy(
            model,
            word,
            features[word],
            splits[word].targets,
            splits[word].keys,
            bank,
            text=text,
            norm=by,
        )
        for text, bank, by in ways
        for word in EVALUATED
    )


def _only(release: Release, keys: Collection[str]) -> Release:
    """The release without the labels that have no images, which may have no texts either."""
    labels = tuple(label for label in release.labels if label.key in keys)
    return release.model_copy(update={"labels": labels})


def _named(
    diagnostics: Sequence[TextDiagnostics], apart: Sequence[PulledApart], names: Sequence[str]
) -> list[int]:
    """Rows of the classes that are named in pairs, but for the control's."""
    pairs: list[ConfusablePair | PulledApart] = [*apart]
    pairs += [pair for each in diagnostics if each.text != CONTROL for pair in each.confusable]
    return list(dict.fromkeys(names.index(name) for pair in pairs for name in (pair.a, pair.b)))


def _some(named: Sequence[int], total: int, limit: int) -> list[int]:
    """At most `limit` of `total` rows, in order: the named ones, and evenly spaced others."""
    if total <= limit:
        return list(range(total))
    chosen = set(named[:limit])
    others = [row for row in range(total) if row not in chosen]
    left = limit - len(chosen)
    return sorted([*chosen, *(others[place * len(others) // left] for place in range(left))])


def _last_epochs(epochs: Sequence[Epoch]) -> float | None:
    """Mean seen accuracy of the last epochs, as the paper reports it; None without an epoch."""
    last = [epoch.seen_top1 for epoch in epochs[-LAST_EPOCHS:]]
    return statistics.fmean(last) if last else None


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "open_clip_torch", "timm")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
