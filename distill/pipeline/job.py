"""A training job, from configuration and release to student and report.

The steps are, in order: check, encode, train, evaluate, report, forecast, export.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from contract import (
    Epoch,
    EventKind,
    Preflight,
    Release,
    Report,
    SplitName,
    TextStrategy,
    TrainConfig,
)
from distill.data.pixels import Progress, choose_pixels
from distill.data.releases import shuffle_texts, write_release
from distill.data.sources.find import base_folder
from distill.data.splits import NO_UNSEEN, Split, scan_splits
from distill.data.streamed_pixels import Pixels
from distill.embeddings.captions import caption_features, read_captions
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, Interrupted, UserError
from distill.evaluation.left_out.forecast import forecast_line
from distill.evaluation.report.training_report import CONTROL, read_report
from distill.evaluation.score_norm import ScoreNorm
from distill.models.devices import describe_device, dtype_name, student_dtype
from distill.models.student import Student, build_student
from distill.models.teacher import Teacher, load_teacher
from distill.pipeline.export_step import check_classifier, export_classifier, remove_classifier
from distill.pipeline.forecast import forecast, train_proxy
from distill.pipeline.inputs import Inputs
from distill.pipeline.preflight import preflight
from distill.pipeline.results import (
    BANK_FILE,
    NAME_BANK_FILE,
    RunInputs,
    accuracies,
    add_forecast,
    write_results,
)
from distill.pipeline.tracking import check_trackers, tracking
from distill.training.checkpoint import Checkpoint
from distill.training.distributed import connect, main_process_first, processes
from distill.training.loop import Callbacks, TrainingData, train
from distill.training.malloc_tuning import keep_freed_memory
from distill.training.openmp import wait_policy

OnEvent = Callable[[EventKind, dict[str, Any]], None]
Phases = Callable[[str], Progress]  # from the title of a phase
RELEASE_FILE: Final = "release.json"
UNPACKING: Final = "Unpacking images"
KEPT: Final = "finished shards of teacher features are kept"
PROGRESS_INTERVAL_S: Final = 1.0  # each event is stored as a row in the service's database


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

    With `config.export`, the folder classifier/ is written too, unless the export fails.

    Under torchrun, all processes call this; only the main process sends events and writes files.

    Raises:
        UserError: an input is missing or invalid; raised before the first step if possible.
        Interrupted: `should_stop` returned true; a checkpoint in `out`, or finished shards of
            features in `cache`, let the run resume.
    """
    check_trackers(config.track)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    is_main = connect(config.device).is_main_process
    emit = on_event if is_main else _ignore_event

    checkpoint = Checkpoint(out / "checkpoint.safetensors", config, release.hash)

    def prepare() -> tuple[RunInputs, Student]:
        # Only the main process encodes. The others find its features in the cache.
        phases = until_stopped(progress_events(emit), should_stop if is_main else _never, KEPT)
        if resume:
            checkpoint.check()  # before files of the old run are replaced
        return _prepare(config, release, out, cache=cache, on_event=emit, phases=phases)

    run, student = main_process_first(prepare)
    with tracking(
        config,
        out,
        resume=resume,
        is_main=is_main,
        log=lambda message: emit(EventKind.LOG, {"message": message}),
    ) as trackers:

        def on_epoch(epoch: Epoch) -> None:
            emit(EventKind.EPOCH, epoch.model_dump(mode="json"))
            trackers.log_epoch(epoch)

        epochs = train(
            config,
            student,
            _training_data(run),
            callbacks=Callbacks(
                on_epoch=on_epoch,
                on_step=progress_events(emit)("Training"),
                should_stop=should_stop,
            ),
            checkpoint=checkpoint,
            resume=resume,
        )
        if is_main:
            remove_classifier(out)  # of an earlier student
            write_results(run, student, out, epochs)
        if config.forecast:
            _forecast(run, student, out, on_event=emit, should_stop=should_stop, resume=resume)
        if is_main and config.export:
            _export(run, student, out, on_event=emit, should_stop=should_stop)
        if is_main:
            trackers.finish(read_report(out))
    processes().wait_for_everyone()
    return read_report(out)


def _forecast(
    run: RunInputs,
    student: Student,
    out: Path,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    resume: bool,
) -> None:
    """Add a forecast to the report. User errors are only logged: the student is already trained.

    Every process calls this.
    """
    torch.manual_seed(run.config.seed)
    try:
        proxy = train_proxy(
            run,
            _build_student(run.config, run.inputs.teacher),
            out,
            on_step=progress_events(on_event)("Training for the forecast"),
            should_stop=should_stop,
            resume=resume,
        )
        if processes().is_main_process:
            result = forecast(run, student, proxy)
            add_forecast(run, read_report(out), result, out)
            on_event(EventKind.LOG, {"message": forecast_line(result)})
    except UserError as error:
        on_event(EventKind.LOG, {"message": f"no forecast: {error}"})


def _export(
    run: RunInputs,
    student: Student,
    out: Path,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> None:
    """Export the trained student as a classifier."""
    phases = until_stopped(progress_events(on_event), should_stop)
    export_classifier(
        run,
        student,
        read_report(out),
        out,
        log=lambda message: on_event(EventKind.LOG, {"message": message}),
        progress=phases("Exporting the classifier"),
    )


def _ignore_event(_kind: EventKind, _data: dict[str, Any]) -> None:
    """Event handler of all processes except the main process."""


def _never() -> bool:
    """Stop request of all processes except the main process."""
    return False


def until_stopped(start: Phases, should_stop: Callable[[], bool], kept: str = "") -> Phases:
    """`start`, with functions that raise Interrupted when the run should stop.

    `kept`: what the run has then kept, for the message.
    """

    def start_phase(phase: str) -> Progress:
        show = start(phase)

        def update(done: int, total: int) -> None:
            if should_stop():
                raise Interrupted(kept)
            show(done, total)

        return update

    return start_phase


def progress_events(on_event: OnEvent) -> Phases:
    """A function from a phase to a function of (done, total), which emits at most one event per
    PROGRESS_INTERVAL_S.
    """

    def start(phase: str) -> Progress:
        emitted = 0.0

        def update(done: int, total: int) -> None:
            nonlocal emitted
            if time.monotonic() - emitted >= PROGRESS_INTERVAL_S or done == total:
                emitted = time.monotonic()
                on_event(EventKind.PROGRESS, {"phase": phase, "step": done, "steps": total})

        return update

    return start


def _prepare(
    config: TrainConfig,
    release: Release,
    out: Path,
    *,
    cache: Path,
    on_event: OnEvent,
    phases: Phases,
) -> tuple[RunInputs, Student]:
    """Check the inputs, so that errors show before hours of training; then encode them."""
    started_at = datetime.now(UTC)

    def log(message: str) -> None:
        on_event(EventKind.LOG, {"message": message})

    splits = scan_splits(
        config.data,
        {label.key for label in release.labels},
        cache=cache,
        progress=phases(UNPACKING),
    )
    check_classifier(out)  # which the new student's classifier replaces
    prepare_folder(out, release)
    checked = check_inputs(
        config, release, splits, cache=cache, device=processes().device, log=log, phases=phases
    )
    inputs = checked.inputs
    if "unseen" not in splits:
        log(NO_UNSEEN)
    classes = (*splits["train"].keys, *(splits["unseen"].keys if "unseen" in splits else ()))
    banks = text_banks(config, release, inputs, classes)
    bank = banks[config.text_strategy]
    if processes().is_main_process:
        bank.save(out / BANK_FILE)
        banks["name"].save(out / NAME_BANK_FILE)
    if bank.flagged:
        log(
            f"{len(bank.flagged)} labels have texts longer than the teacher's "
            f"{inputs.teacher.context_length} tokens; each is encoded as the mean of its sentences"
        )
    captions = _captions(config, inputs, log)
    features = {split: inputs.teacher_features(split, normalize=False) for split in splits}
    views = inputs.view_features(config.teacher_views) if config.teacher_views else None
    rows = accuracies("teacher", splits, banks, bank, features, ScoreNorm.of(features["train"]))
    for row in rows:
        log(f"teacher, {row.text}, {row.split}: {row.top1:.1f} % top-1")
    run = RunInputs(
        config=config,
        release=release,
        inputs=inputs,
        checks=checked.findings,
        pixels=checked.pixels,
        banks=banks,
        features=features,
        views=views,
        captions=captions,
        teacher_rows=rows,
        started_at=started_at,
    )
    return run, checked.student


@dataclass(frozen=True)
class CheckedInputs:
    """What passed the checks before a training."""

    inputs: Inputs
    student: Student
    findings: Preflight
    pixels: Mapping[SplitName, Pixels]


def check_inputs(
    config: TrainConfig,
    release: Release,
    splits: Mapping[SplitName, Split],
    *,
    cache: Path,
    device: torch.device,
    log: Callable[[str], None],
    phases: Phases,
) -> CheckedInputs:
    """Load the teacher, build the student and check everything before the teacher's features.

    `phases`: from the title of a phase to the function that shows its progress.

    Raises:
        UserError: an input is missing or invalid.
    """
    teacher = load_teacher(config.teacher, device=device, precision=config.precision)
    student = _build_student(config, teacher)  # before encoding: this may fail
    choice = choose_pixels(config.pixels, splits.values(), config.image_size, cache)
    log(f"{_machine_line(config, teacher)}, {choice}")
    inputs = Inputs(splits, teacher, cache, phases, choice.mode)
    findings, pixels = preflight(config, release, inputs, log)
    return CheckedInputs(inputs, student, findings, pixels)


def _machine_line(config: TrainConfig, teacher: Teacher) -> str:
    """One line for people: device, precision, optimiser and threads."""
    student = dtype_name(student_dtype(teacher.device, config.precision))
    precision = dtype_name(teacher.dtype)
    if precision != student:
        precision = f"{student} (teacher {precision})"
    parts = [
        f"device: {describe_device(teacher.device)}",
        f"precision: {precision}",
        f"optimiser: {config.optimiser}",
        f"threads: {torch.get_num_threads()}",
    ]
    if teacher.device.type == "cpu":
        parts.append(f"waiting threads: {wait_policy()}")
        parts.append(f"own kernels: {'on' if config.cpu_kernels else 'off'}")
    return ", ".join(parts)


def prepare_folder(out: Path, release: Release) -> None:
    """Create the folder `out` with the release in it.

    Raises:
        DataError: it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if processes().is_main_process:
            write_release(release, out / RELEASE_FILE)
    except OSError as error:
        raise DataError(f"cannot write to {out} ({error.strerror}): choose another --out") from None


def _build_student(config: TrainConfig, teacher: Teacher) -> Student:
    student = build_student(
        config.student,
        teacher.dim,
        image_size=config.image_size,
        pretrained=config.pretrained,
        weights=Path(config.weights) if config.weights is not None else None,
        output_stride=config.output_stride,
    )
    student.test_views = config.test_views
    return student


def text_banks(
    config: TrainConfig, release: Release, inputs: Inputs, classes: Collection[str]
) -> dict[str, TextBank]:
    """Text banks of the plain names, the configured strategy and the shuffled control.

    Raises:
        TextError: the release has no text of the strategy for a class.
    """
    keys, strategy = tuple(classes), config.text_strategy
    banks: dict[str, tuple[Release, TextStrategy]] = {"name": (release, "name")}
    if strategy != "name":
        # Labels without images may have no texts: leave them out of the control.
        used = tuple(label for label in release.labels if label.key in keys)
        shuffled = shuffle_texts(release.model_copy(update={"labels": used}), config.seed)
        banks |= {strategy: (release, strategy), CONTROL: (shuffled, strategy)}
    return {name: inputs.text_bank(texts, kind, keys) for name, (texts, kind) in banks.items()}


def _captions(config: TrainConfig, inputs: Inputs, log: Callable[[str], None]) -> Tensor | None:
    """Features [images, dim] of the training images' captions, if L_cap has a weight."""
    if not config.losses.cap or config.captions is None:
        return None
    root = base_folder(config.data)
    texts = read_captions(root / config.captions, root, inputs.splits["train"])
    log(f"captions for {sum(map(bool, texts))} of {len(texts)} training images")
    progress = inputs.progress("Features of captions")
    return caption_features(inputs.teacher, texts, cache=inputs.cache, progress=progress)


def _training_data(run: RunInputs) -> TrainingData:
    splits, bank = run.inputs.splits, run.bank
    views, teacher = run.views or (None, run.features["train"])
    return TrainingData(
        pixels=run.pixels["train"],
        targets=splits["train"].targets,
        teacher=teacher,
        views=views,
        text=bank.select(splits["train"].keys).features,
        captions=run.captions,
        seen_pixels=run.pixels["seen"],
        seen_targets=splits["seen"].targets,
        seen_text=bank.select(splits["seen"].keys).features,
    )
