"""The commands few-shot, explain and learn-prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from contract import Release, TrainConfig
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
    strategy_given,
)
from distill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.evaluation.explain import Explanation
    from distill.pipeline.few_shot import FewShot

RunTeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="Teacher of the run. Default: as in its report.")
]


def run_config(
    student: Path,
    release: Release,
    *,
    data: Path,
    teacher: str | None,
    strategy: str | None,
    device: str,
) -> TrainConfig:
    """The configuration of the run in the folder `student`, overridden by the options."""
    from distill.evaluation.report.training_report import read_report

    config = read_report(student).config
    changes: dict[str, str] = {"data": str(data), "device": device}
    if teacher is not None:
        changes["teacher"] = teacher
    if strategy is not None:
        changes["text_strategy"] = strategy_given(strategy, release)
    return config.model_copy(update=changes)


@one_line_errors
def few_shot(
    student: Annotated[Path, typer.Option(help="Folder of a training run.")],
    data: DataOption,
    ks: Annotated[list[int], typer.Option("-k", help="Support images of each class; repeat it.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    method: Annotated[
        Literal["prototypes", "finetune"], typer.Option(help="How the support is used.")
    ] = "prototypes",
    seeds: Annotated[int, typer.Option(min=1, help="Number of sampled supports.")] = 3,
    strategy: StrategyOption = None,
    teacher: RunTeacherOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the student that was finetuned with the largest k and seed 0, as that "
            "of a training run."
        ),
    ] = None,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Accuracy on unseen classes with k labelled images of each, over several samples of them."""
    from distill.evaluation.left_out.photo_weight import DEFAULT
    from distill.evaluation.report.training_report import read_report
    from distill.models.student import FILE, load_student
    from distill.pipeline.few_shot import Finetuned, FinetuningCallbacks, Sampling
    from distill.pipeline.few_shot import few_shot as evaluate_few_shot
    from distill.pipeline.finetuned_run import write_finetuned_run

    if out is not None and method != "finetune":
        raise UserError("only finetuning makes a student to save: add --method finetune")
    if out is not None and (out / "report.json").exists():
        raise UserError(f"{out} holds a run already: choose another --out")
    chosen = release_given(release, labels, descriptions)
    config = run_config(
        student, chosen, data=data, teacher=teacher, strategy=strategy, device=device
    )
    network, _ = load_student(student / FILE)
    report = read_report(student)
    calibration = report.calibration
    finetuned: list[Finetuned] = []
    with bars() as bar:
        result = evaluate_few_shot(
            config,
            network,
            chosen,
            method=method,
            sampling=Sampling(
                ks, range(seeds), calibration.text_photos if calibration else DEFAULT
            ),
            cache=cache,
            progress=bar,
            on_finetuning=FinetuningCallbacks(bar("Finetuning"), finetuned.append),
        )
        if out is not None:
            write_finetuned_run(finetuned[0], report, config, chosen, out)
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    print_few_shot(result)
    if out is not None:
        line = (
            f"student: {out}; its report leaves out the images it was finetuned on, which "
            "`distill evaluate` and `distill export` count in"
        )
        notes.print(line, markup=False, soft_wrap=True)


def print_few_shot(result: "FewShot") -> None:
    """The rows of a few-shot evaluation as a table."""
    settings = ", ".join(f"{name} {value:g}" for name, value in result.settings.items())
    count = len(result.seeds)
    samples = f"{count} sample{'s' if count > 1 else ''}"
    columns = ["model", "k", "top-1 %", "per class %", "text only %", "images"]
    columns.append("seen top-1 %" if result.method == "finetune" else "photos only %")
    title = f"{result.method}, {result.classes} unseen classes, {samples} ({settings})"
    table = Table(*columns, title=title)
    for row in result.rows:
        table.add_row(
            row.model,
            str(row.k),
            with_deviation(row.top1, row.top1_deviation),
            with_deviation(row.mean_per_class, row.mean_per_class_deviation),
            f"{row.text_only_top1:.1f}",
            str(row.images),
            *(f"{x:.1f}" for x in (row.seen_top1, row.photos_only_top1) if x is not None),
        )
    Console().print(table)


def with_deviation(value: float, deviation: float | None) -> str:
    """12.3 ± 0.4, or 12.3 for a single value."""
    return f"{value:.1f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"


@one_line_errors
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    student: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    release: Annotated[
        Path | None, typer.Option(help="Release as JSON. Default: that of the run --student.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Default: the teacher of the run --student.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Only this class, by key or name; repeat it."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show.")] = 5,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """The predicted classes of images, and the attributes that support each of them.

    With --student, an attribute fired where its score is clearly above that with other images, and
    the run's bias against the classes that it was trained on is taken from their scores.
    """
    from distill.evaluation.explain import Explanation, Explanations, encode_attributes, restrict
    from distill.evaluation.explain import explain as explain_features
    from distill.evaluation.report.training_report import read_report
    from distill.evaluation.score_norm import FILE as NORM_FILE
    from distill.evaluation.score_norm import ScoreNorm
    from distill.models.devices import choose_device
    from distill.models.teacher import load_teacher
    from distill.pipeline.inputs import file_features
    from distill.pipeline.job import RELEASE_FILE

    if student is not None:
        teacher = teacher or read_report(student).config.teacher
        release = release or student / RELEASE_FILE
    if teacher is None:
        raise UserError("name a model: --student FOLDER of a training run, or --teacher NAME")
    chosen = restrict(release_given(release, None, None), classes or ())
    norm = None if student is None else ScoreNorm.load(student / NORM_FILE)
    model = load_teacher(teacher, device=choose_device(device))
    features = file_features(images, model, student)
    biases = None if student is None else seen_biases(student, chosen)
    texts = encode_attributes(model, chosen)
    explained = explain_features(features, texts, top, norm, biases)
    result = Explanations(
        model="teacher" if student is None else "student",
        teacher=model.name,
        release_hash=chosen.hash,
        images=tuple(
            Explanation(image=str(path), classes=found)
            for path, found in zip(images, explained, strict=True)
        ),
    )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    for image in result.images:
        print_explanation(image)


def seen_biases(student: Path, release: Release) -> "Tensor":
    """What the run in `student` takes from the scores of each class of `release`: its bias from
    those of the classes that it was trained on.
    """
    import torch

    from distill.embeddings.text_bank import TextBank
    from distill.evaluation.report.training_report import read_report
    from distill.pipeline.results import BANK_FILE

    report = read_report(student)
    bias = 0.0 if report.calibration is None else report.calibration.seen_bias
    # The bank has the trained classes first, then the unseen ones.
    unseen = max((row.classes for row in report.accuracies if row.split == "unseen"), default=0)
    keys = TextBank.load(student / BANK_FILE).keys
    trained = set(keys[: len(keys) - unseen])
    return torch.tensor([bias if label.key in trained else 0.0 for label in release.labels])


def print_explanation(image: "Explanation") -> None:
    """The classes of an image, with the attributes that fired or, without evidence, all."""
    compared = any(each.fired is not None for found in image.classes for each in found.attributes)
    what = "attributes that fired (deviations above other images)" if compared else "attributes"
    table = Table("class", "score", what, title=image.image)
    for found in image.classes:
        lines = [
            f"{each.attribute} ({each.cosine:.3f})"
            if each.evidence is None
            else f"{each.attribute} (+{each.evidence:.1f})"
            for each in found.attributes
            if each.fired is not False
        ]
        table.add_row(found.name, f"{found.score:.3f}", "\n".join(lines) or "none")
    Console().print(table)


@one_line_errors
def learn_prompt(
    data: DataOption,
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help="The text bank to write, a safetensors file.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    tokens: Annotated[int, typer.Option(min=1, help="Context tokens to learn.")] = 4,
    described: Annotated[bool, typer.Option(help="Add the description after the name.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 256 images.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: DeviceOption = "auto",
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Learn a context that replaces "a photo of", on the seen classes (CoOp)."""
    from distill.data.splits import scan_splits
    from distill.models.devices import choose_device
    from distill.models.teacher import load_teacher
    from distill.pipeline.inputs import Inputs
    from distill.pipeline.prompt_learning import Settings
    from distill.pipeline.prompt_learning import learn_prompt as learn

    chosen = release_given(release, labels, descriptions)
    splits = scan_splits(data, {label.key for label in chosen.labels}, cache=cache)
    with bars() as bar:
        inputs = Inputs(splits, load_teacher(teacher, device=choose_device(device)), cache, bar)
        result = learn(inputs, chosen, Settings(tokens, described, steps, seed), out)
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    table = Table("text", "split", "top-1 %", title=f"{tokens} learned tokens → {out}")
    for row in result.accuracies:
        table.add_row(row.text, row.split, f"{row.top1:.1f}")
    Console().print(table)
