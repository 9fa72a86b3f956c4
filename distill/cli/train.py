"""`distill train` and `distill report`."""

import json
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from contract import EventKind, LossWeights, PixelMode, Report, TrainConfig, first_error_line
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
from distill.data.files.allowed_paths import check_allowed_paths
from distill.errors import UserError
from distill.training.outcome import INTERRUPTED, outcome_of

RUN_FILES: Final = ("checkpoint.safetensors", "student.safetensors", "report.json")

if TYPE_CHECKING:
    from distill.evaluation.report.seeds import SeedsReport, Spread


def read_config(path: Path, preset: str | None = None) -> TrainConfig:
    """The training configuration in a TOML or JSON file, with defaults from the preset, if any.

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
        raise UserError(f"{path}: {unknown_option(error) or first_error_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} is neither TOML nor JSON: {error}") from None


def unknown_option(error: ValidationError) -> str | None:
    """A line that names the first unknown option and the known option most like it, if any."""
    for problem in error.errors(include_url=False):
        if problem["type"] != "extra_forbidden":
            continue
        *parents, name = map(str, problem["loc"])
        known = LossWeights.model_fields if parents else TrainConfig.model_fields
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)
        return (
            f"there is no option {'.'.join([*parents, name])!r}: did you mean "
            f"{'.'.join([*parents, *nearest])!r}?"
        )
    return None


def read_preset(name: str) -> dict[str, Any]:
    """The fields of the preset `name`.

    Raises:
        UserError: there is no such preset.
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
        str | None,
        typer.Option(help="resnet or vit: use the paper's settings as defaults."),
    ] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds such as 0,1,2: one run per seed, and a report over all."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")] = False,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, cuda:1 or mps. Default: as in the configuration."),
    ] = None,
    pixels: Annotated[
        PixelMode | None,
        typer.Option(help="auto, cached or streamed. Default: as in the configuration."),
    ] = None,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast",
            help="Forecast the accuracy on later classes, which adds half the training time; with "
            "--resume also for a finished run.",
        ),
    ] = False,
    events: Annotated[bool, typer.Option(help="Print each event as a JSON line.")] = False,
    cache: CacheOption = CACHE,
    data_root: DataRootOption = None,
) -> None:
    """Distil a student and write its report.

    On several GPUs: torchrun --nproc-per-node 2 -m distill train …
    """
    settings = read_config(config, preset)
    if device is not None:
        from distill.models.devices import choose_device

        choose_device(device)  # reports a missing device before anything else is read
        settings = settings.model_copy(update={"device": device})
    if pixels is not None:
        settings = settings.model_copy(update={"pixels": pixels})
    if forecast:
        settings = settings.model_copy(update={"forecast": True})
    if data_root:
        check_allowed_paths(settings, data_root)
    chosen = release_given(release, labels, descriptions)
    seed_list = None if seeds is None else parse_seeds(seeds)
    if not resume:
        for folder in (out, *out.glob("seed-*")):
            refuse_to_overwrite(folder, out)
    from distill.data.splits import NO_UNSEEN
    from distill.pipeline.job import run_job
    from distill.pipeline.seeds import run_seeds
    from distill.training.distributed import processes

    with bars() as bar, exit_status(settings.batch_size):
        options: dict[str, Any] = {
            "cache": cache,
            "resume": resume,
            "on_event": print_event if events else TerminalProgress(bar),
            "should_stop": stop_requests(follow_parent=events),
        }
        result: Report | SeedsReport = (
            run_job(settings, chosen, out, **options)
            if seed_list is None
            else run_seeds(settings, chosen, out, seed_list, **options)
        )
    if processes().is_main_process and not events:
        print_accuracies(result.accuracies)
        if not any(row.split == "unseen" for row in result.accuracies):
            notes.print(NO_UNSEEN, soft_wrap=True)
        page = "report.html" if seed_list is None else "seeds.html"
        notes.print(f"report: {out / page}", markup=False)


def refuse_to_overwrite(folder: Path, out: Path) -> None:
    """Raise UserError if `folder` has a run already, which training would overwrite."""
    if any((folder / name).exists() for name in RUN_FILES):
        raise UserError(
            f"{folder} holds a run already: continue it with --resume, or choose another --out"
        )


def stop_requests(*, follow_parent: bool) -> Callable[[], bool]:
    """A function that returns whether training should stop: after SIGTERM or SIGINT and, with
    `follow_parent`, once the parent process has died.

    The worker that reads the events may be killed; its training then writes a checkpoint and ends.
    """
    stop, parent = threading.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return lambda: stop.is_set() or (follow_parent and os.getppid() != parent)


def print_event(kind: EventKind, data: Mapping[str, Any]) -> None:
    """Print an event as one JSON line."""
    from distill.worker.event_lines import event_line

    print(event_line(kind, data), flush=True)  # noqa: T201


class TerminalProgress:
    """Shows the events of a run to a person, on standard error."""

    def __init__(self, bar: Callable[[str], Callable[[int, int], None]]) -> None:
        self._bar = bar
        self._bars: dict[str, Callable[[int, int], None]] = {}

    def __call__(self, kind: EventKind, data: Mapping[str, Any]) -> None:
        """Show one event."""
        if kind is EventKind.PROGRESS:
            phase = data["phase"]
            if phase not in self._bars:
                self._bars[phase] = self._bar(phase)
            self._bars[phase](data["step"], data["steps"])
        elif kind is EventKind.EPOCH:
            notes.print(
                f"epoch {data['epoch']}: loss {data['loss']:.3f}, "
                f"seen {data['seen_top1']:.1f} %, {data['images_per_second']:.0f} images/s"
            )
        elif kind is EventKind.LOG:
            notes.print(data["message"], markup=False, soft_wrap=True)


@contextmanager
def exit_status(batch_size: int) -> Iterator[None]:
    """Turn an exception of a training run into its message and exit status."""
    from distill.training.distributed import processes

    try:
        yield
    except Exception as error:
        outcome = outcome_of(error, batch_size)
        if outcome is None:
            raise
        if outcome.status != INTERRUPTED or processes().is_main_process:
            print(outcome.message, file=sys.stderr)  # noqa: T201
        raise typer.Exit(outcome.status) from None


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in a list such as 0,1,2.

    Raises:
        UserError: `text` is not a list of distinct integers.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{text!r} is not a list of distinct seeds: write it like --seeds 0,1,2")
    return seeds


def print_accuracies(rows: tuple[Any, ...]) -> None:
    """Print the accuracies of a report on seen and unseen classes as a table."""
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
