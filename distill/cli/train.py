"""`distill train` and `distill report`."""

import json
import os
import signal
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from contract import EventKind, Report, TrainConfig, first_error_line
from distill.cli.console import (
    CACHE,
    CacheOption,
    DataRootOption,
    DescriptionsOption,
    LabelsOption,
    ReleaseOption,
    bars,
    notes,
    one_line_errors,
    release_given,
)
from distill.data.allowed_paths import check_allowed_paths
from distill.errors import Interrupted, UserError

if TYPE_CHECKING:
    from distill.evaluation.seeds_report import SeedsReport, Spread


def read_config(path: Path, preset: str | None = None) -> TrainConfig:
    """The training configuration in a TOML or JSON file, on top of the preset of that name.

    Raises:
        UserError: the file is missing or malformed, a field is wrong, or there is no such preset.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return TrainConfig.model_validate({**read_preset(preset), **values} if preset else values)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path} ({error.strerror})") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_error_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} is neither TOML nor JSON: {error}") from None


def read_preset(name: str) -> dict[str, Any]:
    """The fields of the preset called `name`, one of those that the package brings.

    Raises:
        UserError: there is none of that name.
    """
    presets = {path.stem: path for path in (Path(__file__).parents[1] / "presets").glob("*.toml")}
    if name not in presets:
        raise UserError(f"there is no preset {name!r}: choose {' or '.join(sorted(presets))}")
    return tomllib.loads(presets[name].read_text(encoding="utf-8"))


@one_line_errors
def train(
    config: Annotated[Path, typer.Option(help="Training configuration, TOML or JSON.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, student and report.")],
    preset: Annotated[
        str | None, typer.Option(help="resnet or vit: the paper's protocol below --config.")
    ] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0,1,2: a run each, and one report of all.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    events: Annotated[bool, typer.Option(help="One JSON line an event on stdout.")] = False,
    cache: CacheOption = CACHE,
    data_root: DataRootOption = None,
) -> None:
    """Distil a student and write its report.

    On several GPUs: torchrun --nproc-per-node 2 -m distill train …
    """
    settings = read_config(config, preset)
    if data_root:
        check_allowed_paths(settings, data_root)
    chosen = release_given(release, labels, descriptions)
    numbers = None if seeds is None else parse_seeds(seeds)
    from distill.pipeline.job import run_job
    from distill.pipeline.seeds import run_seeds
    from distill.training.distributed import processes
    from distill.training.malloc_tuning import is_out_of_memory, out_of_memory
    from distill.worker.protocol import INTERRUPTED, OUT_OF_MEMORY, event_line

    stop, parent = {"asked": False}, os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    signal.signal(signal.SIGINT, lambda *_: stop.update(asked=True))
    with bars() as bar:
        shown: dict[str, Callable[[int, int], None]] = {}

        def on_event(kind: EventKind, data: dict[str, Any]) -> None:
            if events:
                print(event_line(kind, data), flush=True)  # noqa: T201
            elif kind is EventKind.PROGRESS:
                phase = data["phase"]
                if phase not in shown:
                    shown[phase] = bar(phase)
                shown[phase](data["step"], data["steps"])
            elif kind is EventKind.EPOCH:
                notes.print(
                    f"epoch {data['epoch']}: loss {data['loss']:.3f}, "
                    f"seen {data['seen_top1']:.1f} %, {data['images_per_second']:.0f} images/s"
                )
            elif kind is EventKind.LOG:
                notes.print(data["message"], markup=False)

        how: dict[str, Any] = {
            "cache": cache,
            "resume": resume,
            "on_event": on_event,
            # The worker that reads the events may be killed: end then, with a checkpoint.
            "should_stop": lambda: stop["asked"] or (events and os.getppid() != parent),
        }
        try:
            if numbers is None:
                report: Report | SeedsReport = run_job(settings, chosen, out, **how)
            else:
                report = run_seeds(settings, chosen, out, numbers, **how)
        except Interrupted:
            if not processes().is_main_process:
                raise typer.Exit(INTERRUPTED) from None
            print(  # noqa: T201
                f"distill: stopped; go on with the same command and --resume ({out})",
                file=sys.stderr,
            )
            raise typer.Exit(INTERRUPTED) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = out_of_memory(settings.batch_size)
            print(f"distill: {said}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(OUT_OF_MEMORY) from None
    if processes().is_main_process and not events:
        print_accuracies(report.accuracies)
        page = "report.html" if numbers is None else "seeds.html"
        notes.print(f"report: {out / page}", markup=False)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in a list such as 0,1,2.

    Raises:
        UserError: it is no list of different whole numbers.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{text!r} is no list of different seeds: give them as in --seeds 0,1,2")
    return seeds


def print_accuracies(rows: tuple[Any, ...]) -> None:
    """The seen/unseen table of a report."""
    table = Table("model", "text", "seen top-1 %", "unseen top-1 %")
    cells = {(row.model, row.text, row.split): _shown(row.top1) for row in rows}
    for model, text in dict.fromkeys((row.model, row.text) for row in rows):
        values = (cells.get((model, text, split)) for split in ("seen", "unseen"))
        table.add_row(model, text, *("–" if v is None else v for v in values))
    Console().print(table)


def _shown(value: "float | Spread") -> str:
    if not isinstance(value, float):
        return f"{value.mean:.1f} ± {value.deviation:.1f}"
    return f"{value:.1f}"


@one_line_errors
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a training run.")],
) -> None:
    """Render report.html again from a finished run."""
    from distill.pipeline.results import render_report

    print(render_report(folder))  # noqa: T201
