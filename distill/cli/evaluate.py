"""`distill evaluate`, `distill text-bank` and `distill diagnose`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from contract import TestViews
from distill.cli.console import (
    CACHE,
    CacheOption,
    DataOption,
    DescriptionsOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    ReleaseOption,
    StrategyOption,
    TeacherOption,
    bars,
    notes,
    one_line_errors,
    release_given,
    show,
    strategy_given,
)
from distill.errors import DataError, TextError, UserError

if TYPE_CHECKING:
    from distill.data.splits import Split
    from distill.evaluation.figures import EvaluatedSplit


@one_line_errors
def text_bank(
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Encode the texts of a release with a teacher."""
    from distill.embeddings.text_bank import build_text_bank
    from distill.models.devices import choose_device
    from distill.models.teacher import load_teacher

    chosen = release_given(release, labels, descriptions)
    model = load_teacher(teacher, device=choose_device(device))
    bank = build_text_bank(model, chosen, strategy_given(strategy, chosen))
    bank.save(out)
    flagged = f", {len(bank.flagged)} longer than the context" if bank.flagged else ""
    notes.print(f"{len(bank.keys)} classes, {bank.features.shape[1]} dimensions{flagged} → {out}")
    if as_json:
        summary = {
            "file": str(out),
            "classes": len(bank.keys),
            "dim": bank.features.shape[1],
            "strategy": bank.strategy,
            "teacher": bank.teacher,
            "release_hash": bank.release_hash,
            "flagged": bank.flagged,
        }
        print(json.dumps(summary))  # noqa: T201


@one_line_errors
def evaluate(
    data: DataOption,
    teacher: TeacherOption,
    split: Annotated[
        str | None,
        typer.Option(
            help="val or unseen, val_on_train or seen. Default: unseen, if there are such classes."
        ),
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="Folder of a training run. Default: evaluate the teacher.")
    ] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    text_bank: Annotated[
        Path | None, typer.Option(help="Text bank file, instead of a release.")
    ] = None,
    test_views: Annotated[
        TestViews | None,
        typer.Option(help="Views of each image for the student. Default: those of its run."),
    ] = None,
    normalised: Annotated[
        bool,
        typer.Option("--normalised", help="Standardise each class's scores, as the report does."),
    ] = False,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="Both splits, with all classes competing for each image."),
    ] = False,
    seen_bias: Annotated[
        float | None,
        typer.Option(help="With --joint: bias against seen classes. Default: the run's, or 0."),
    ] = None,
    device: DeviceOption = "auto",
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a teacher or a student on one split, against the texts of a release."""
    from distill.embeddings.text_bank import TextBank
    from distill.evaluation.accuracy import accuracy
    from distill.evaluation.figures import joint_accuracy
    from distill.evaluation.report.training_report import NORMALISED
    from distill.evaluation.score_norm import FILE as NORM_FILE
    from distill.evaluation.score_norm import ScoreNorm
    from distill.models.devices import choose_device
    from distill.models.student import FILE, load_student
    from distill.models.teacher import load_teacher
    from distill.pipeline.inputs import Inputs

    if student is None and (test_views or normalised):
        raise UserError("--test-views and --normalised need a student: give --student FOLDER")
    if joint and normalised:
        raise UserError("--joint cannot be combined with --normalised: leave one of them out")
    if seen_bias is not None and not joint:
        raise UserError("--seen-bias needs --joint: give both")
    norm = ScoreNorm.load(student / NORM_FILE) if student is not None and normalised else None
    if text_bank is None:
        chosen = release_given(release, labels, descriptions)
        name, splits = _splits(data, split, {label.key for label in chosen.labels}, joint, cache)
    else:
        if release or labels or descriptions or strategy:
            raise TextError("give either --text-bank or a release with its strategy, not both")
        bank = TextBank.load(text_bank)
        if bank.teacher != teacher:
            raise TextError(
                f"{text_bank} was made with another teacher: give --teacher {bank.teacher}"
            )
        name, splits = _splits(data, split, bank.keys, joint, cache)
    with bars() as bar:
        loaded = load_teacher(teacher, device=choose_device(device))
        inputs = Inputs({name: splits[name] for name in splits}, loaded, cache, bar)
        if text_bank is None:
            keys = [key for images in splits.values() for key in images.keys]
            bank = inputs.text_bank(chosen, strategy_given(strategy, chosen), keys)
        if student is None:
            features = {name: inputs.teacher_features(name) for name in splits}
        else:
            network, size = load_student(student / FILE)
            network = network.to(inputs.teacher.device)
            features = {
                name: network.encode(inputs.pixels(name, size), test_views) for name in splits
            }
    model: Literal["teacher", "student"] = "teacher" if student is None else "student"
    if joint:
        bias = _seen_bias(student) if seen_bias is None else seen_bias
        together = joint_accuracy(model, features, splits, bank, bias=bias)
        show(together, as_json, f"{model}, seen and unseen classes together")
        return
    images = splits[name]
    text = NORMALISED if normalised else None
    result = accuracy(
        model, name, features[name], images.targets, images.keys, bank, text=text, norm=norm
    )
    show(result, as_json, f"{model} on {name} classes")


def _splits(
    data: Path, split: str | None, known: Collection[str], joint: bool, cache: Path
) -> tuple["EvaluatedSplit", "dict[EvaluatedSplit, Split]"]:
    """The name of the split to evaluate on, and the splits to read: that one, or both for `joint`.

    The default split is unseen, or seen if there are no unseen classes.
    """
    from distill.data.splits import EVALUATION_SPLITS, NO_UNSEEN, scan_splits

    if split is not None and split not in EVALUATION_SPLITS:
        raise TextError(f"there is no split {split!r} to evaluate on: choose seen or unseen")
    name = EVALUATION_SPLITS[split or "unseen"]
    both: tuple[EvaluatedSplit, ...] = ("seen", "unseen")
    splits = scan_splits(data, known, both if joint or split is None else (name,), cache=cache)
    if "unseen" not in splits and name == "unseen":
        if joint or split is not None:
            raise DataError(f"{data}: {NO_UNSEEN}")
        notes.print(NO_UNSEEN, soft_wrap=True)
        name = "seen"
    return name, {chosen: splits[chosen] for chosen in (both if joint else (name,))}


def _seen_bias(student: Path | None) -> float:
    """The seen bias that calibration chose for the student's run; 0 for a teacher."""
    from distill.evaluation.report.training_report import read_report

    calibration = None if student is None else read_report(student).calibration
    return 0.0 if calibration is None else calibration.seen_bias


@one_line_errors
def diagnose(
    embeddings: Annotated[Path | None, typer.Option(help="An .npz file of text features.")] = None,
    key: Annotated[str, typer.Option(help="Name of the array in the .npz file.")] = "name",
    teacher: Annotated[str | None, typer.Option(help="Teacher that encodes the texts.")] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Similarity of class texts: cosines, spectrum, the most confusable pairs."""
    from distill.evaluation.diagnostics import diagnose as diagnose_features
    from distill.evaluation.diagnostics import read_embeddings
    from distill.models.devices import choose_device

    chosen_device = choose_device(device)
    if embeddings is not None:
        features, names = read_embeddings(embeddings, key)
        text = key
    elif teacher is not None:
        from distill.embeddings.text_bank import build_text_bank
        from distill.models.teacher import load_teacher

        chosen = release_given(release, labels, descriptions)
        model = load_teacher(teacher, device=chosen_device)
        bank = build_text_bank(model, chosen, strategy_given(strategy, chosen))
        features, names, text = bank.features, list(bank.names), bank.strategy
    else:
        raise TextError("give --embeddings FILE.npz, or --teacher with a release")
    result = diagnose_features(features, names, text, device=chosen_device)
    show(result, as_json, f"Text features '{text}'")
    if not as_json:
        table = Table("Most confusable", "", "cosine")
        for pair in result.confusable:
            table.add_row(pair.a, pair.b, f"{pair.cosine:.4f}")
        Console().print(table)
