"""One training job from configuration and release to student and report.

Everything with files and models around the pure training loop happens here, in the order in which
it is read: check, encode, train, evaluate, report.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import Accuracy, EventKind, Release, Report, TextStrategy, TrainConfig
from distill.captions import caption_features, read_captions
from distill.checkpoint import Checkpoint
from distill.data import Progress, Split, load_pixels, scan_split
from distill.diagnose import diagnose, pulled_apart
from distill.errors import DataError, ModelError
from distill.evaluate import accuracy, imitation
from distill.features import image_embeddings
from distill.releases import shuffle_texts
from distill.report import read_report, write_report
from distill.student import FILE as STUDENT_FILE
from distill.student import build_student, save_student
from distill.teacher import load_teacher
from distill.text_bank import TextBank, build_text_bank
from distill.train import TrainingData, train

OnEvent = Callable[[EventKind, dict[str, Any]], None]
BANK_FILE: Final = "text_bank.safetensors"  # of the strategy that the student was trained on
NAME_BANK_FILE: Final = "name_bank.safetensors"
RELEASE_FILE: Final = "release.json"
PROGRESS_SECONDS: Final = 1.0  # each event becomes a row in the service's database
SplitName = Literal["train", "seen", "unseen"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "seen", "unseen")
EVALUATED: Final[tuple[Literal["seen", "unseen"], ...]] = ("seen", "unseen")


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

    Raises:
        UserError: something is missing or does not fit; said before the first step where possible.
        Interrupted: `should_stop` came true; a checkpoint in `out` lets it go on.
    """
    started = datetime.now(UTC)
    root = Path(config.data)
    torch.manual_seed(config.seed)

    def progress(phase: str) -> Progress:
        said = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= PROGRESS_SECONDS or done == total:
                said = time.monotonic()
                on_event(EventKind.PROGRESS, {"phase": phase, "step": done, "steps": total})

        return tell

    def log(message: str) -> None:
        on_event(EventKind.LOG, {"message": message})

    # Check everything that can be checked before hours are spent.
    known = {label.key for label in release.labels}
    splits = {word: scan_split(root, word, known) for word in SPLITS}
    _check_classes(root, splits)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RELEASE_FILE).write_text(release.model_dump_json())
    except OSError as error:
        raise DataError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
    teacher = load_teacher(config.teacher)
    for word, split in splits.items():
        log(f"{word}: {len(split)} images of {len(split.keys)} classes")

    # Texts: the plain name, the chosen strategy, and the control with texts dealt out at random.
    releases = {"name": release}
    strategies: dict[str, TextStrategy] = {"name": "name"}
    if config.text_strategy != "name":
        releases[config.text_strategy] = release
        releases["shuffled"] = shuffle_texts(release, config.seed)
        strategies[config.text_strategy] = strategies["shuffled"] = config.text_strategy
    classes = tuple(dict.fromkeys((*splits["seen"].keys, *splits["unseen"].keys)))
    banks = {
        text: build_text_bank(teacher, releases[text], strategies[text], keys=classes, cache=cache)
        for text in releases
    }
    bank = banks[config.text_strategy]
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
    rows = _accuracies("teacher", splits, features, banks)
    for row in rows:
        log(f"teacher, {row.text}, {row.split}: {row.top1:.1f} % top-1")
    _check_teacher(rows, config)

    # The student.
    pixels = {
        word: torch.from_numpy(
            load_pixels(split, config.image_size, cache, progress(f"Pixels, {word}"))
        )
        for word, split in splits.items()
    }
    student = build_student(
        config.student, teacher.dim, image_size=config.image_size, pretrained=config.pretrained
    )
    checkpoint = Checkpoint(out / "checkpoint.safetensors", config, release.hash)
    epochs = train(
        config,
        student,
        TrainingData(
            pixels=pixels["train"],
            targets=splits["train"].targets,
            teacher=features["train"],
            text=bank.select(splits["train"].keys).features,
            captions=captions,
            seen_pixels=pixels["seen"],
            seen_targets=splits["seen"].targets,
            seen_text=bank.select(splits["seen"].keys).features,
        ),
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=lambda epoch: on_event(EventKind.EPOCH, epoch.model_dump(mode="json")),
        on_step=progress("Training"),
        should_stop=should_stop,
    )
    save_student(
        student,
        out / STUDENT_FILE,
        name=config.student,
        dim=teacher.dim,
        image_size=config.image_size,
        teacher=config.teacher,
    )

    # What it was worth.
    learned = {word: student.encode(pixels[word]) for word in SPLITS}
    student_rows = _accuracies("student", splits, learned, banks)
    before = banks["name"]
    result = Report(
        config=config,
        release_id=release.id or None,
        release_hash=release.hash,
        label_set=release.label_set,
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_dim=teacher.dim,
        student_parameters=sum(p.numel() for p in student.parameters()),
        epochs=epochs,
        accuracies=(*rows, *student_rows),
        imitation=tuple(
            imitation(word, learned[word], features[word], bank.select(splits[word].keys).features)
            for word in SPLITS
        ),
        diagnostics=tuple(
            diagnose(each.features, each.names, text) for text, each in banks.items()
        ),
        pulled_apart=pulled_apart(before, bank, release),
        flagged_texts=bank.flagged,
        versions=_versions(),
        started_at=started,
        finished_at=datetime.now(UTC),
    )
    write_report(result, out, similarity=_similarity(banks["name"], bank), names=bank.names)
    return result


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
) -> tuple[Accuracy, ...]:
    return tuple(
        accuracy(
            model, word, features[word], splits[word].targets, splits[word].keys, bank, text=text
        )
        for text, bank in banks.items()
        for word in EVALUATED
    )


def _check_classes(root: Path, splits: Mapping[SplitName, Split]) -> None:
    train = set(splits["train"].keys)
    if strange := sorted(set(splits["seen"].keys) - train):
        raise DataError(
            f"{root}/val_on_train has the class {strange[0]!r}, which is not in train/: seen "
            "classes need images in both"
        )
    if both := sorted(set(splits["unseen"].keys) & train):
        raise DataError(
            f"{root}/val has the class {both[0]!r}, which is also in train/ and so not unseen: "
            "move it to val_on_train/"
        )


def _check_teacher(rows: Sequence[Accuracy], config: TrainConfig) -> None:
    """Training is in vain where the teacher itself cannot tell the seen classes apart."""
    row = next(r for r in rows if r.text == config.text_strategy and r.split == "seen")
    chance = 1 / row.classes
    error = (chance * (1 - chance) / row.images) ** 0.5
    if row.top1 / 100 <= chance + 3 * error:
        raise ModelError(
            f"the teacher {config.teacher} recognises {row.top1:.1f} % of the seen images, no more "
            f"than chance ({100 * chance:.1f} %): check that folders, labels and texts belong "
            "together"
        )


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "open_clip_torch", "timm")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
