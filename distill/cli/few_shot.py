"""`distill few-shot`."""

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
    bars,
    notes,
    one_line_errors,
    release_given,
    strategy_given,
)
from distill.errors import UserError

if TYPE_CHECKING:
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
    """The configuration of the run in the folder `student`, with the options applied."""
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
    ks: Annotated[list[int], typer.Option("-k", help="Support images per class (repeatable).")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    method: Annotated[
        Literal["prototypes", "finetune"], typer.Option(help="How the support images are used.")
    ] = "prototypes",
    seeds: Annotated[int, typer.Option(min=1, help="Number of sampled support sets.")] = 3,
    strategy: StrategyOption = None,
    teacher: RunTeacherOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the student finetuned with the largest k and seed 0 to, in the "
            "layout of a training run."
        ),
    ] = None,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Accuracy on unseen classes with k labelled images per class, over several samples."""
    from distill.evaluation.left_out.photo_weight import DEFAULT
    from distill.evaluation.report.training_report import read_report
    from distill.models.student import FILE, load_student
    from distill.pipeline.few_shot import Finetuned, FinetuningCallbacks, Sampling
    from distill.pipeline.few_shot import few_shot as evaluate_few_shot
    from distill.pipeline.finetuned_run import write_finetuned_run

    if out is not None and method != "finetune":
        raise UserError("--out needs a finetuned student: add --method finetune")
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
            f"student: {out}; its report excludes the images that it was finetuned on, but "
            "`distill evaluate` and `distill export` include them"
        )
        notes.print(line, markup=False, soft_wrap=True)


def print_few_shot(result: "FewShot") -> None:
    """Print the rows of a few-shot evaluation as a table."""
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
