"""Shared by all commands: options, progress bars, one-line errors, tables and JSON."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec, Protocol, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from contract import Release, TextStrategy
from distill.errors import TextError, UserError

# torch, open_clip and timm take seconds to import: each command imports what it needs.

notes = Console(stderr=True)
LINE_INTERVAL_S: Final = 10.0  # between lines of progress where there is no terminal for bars
P = ParamSpec("P")
R = TypeVar("R")

DataOption = Annotated[
    Path,
    typer.Option(
        help="Images: a folder of class folders, or with train/, val_on_train/ (seen) and val/ "
        "(unseen); or any other source of `distill data check`."
    ),
]
TeacherOption = Annotated[
    str, typer.Option(help="NAME@TAG of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER.")
]
ReleaseOption = Annotated[Path | None, typer.Option(help="Release as JSON (`enrich export`).")]
LabelsOption = Annotated[Path | None, typer.Option(help="The paper's label2text.txt.")]
DescriptionsOption = Annotated[Path | None, typer.Option(help="The paper's chatgpt.txt.")]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        help="Text strategy. Default: name+description, or name if there are no descriptions."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps; auto prefers a GPU.")
]
CacheOption = Annotated[Path, typer.Option(help="Folder for cached features and pixels.")]
CACHE = Path(".distill-cache")  # as in distill.data.splits, which imports torch
DataRootOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data-root",
        help="Folder that jobs may read images, weights and teachers from (repeatable).",
    ),
]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """On a UserError, print one line to standard error and exit with status 1."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"distill: {error}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(1) from None

    return run


class ProgressDisplay(Progress):
    """Progress bars on a terminal; in a log file, a line every LINE_INTERVAL_S seconds."""

    def __init__(
        self, *columns: str | ProgressColumn, console: Console, transient: bool = False
    ) -> None:
        quiet = not console.is_terminal
        super().__init__(*columns, console=console, transient=transient, disable=quiet)
        self._printed = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:  # noqa: ANN401 - as in Progress
        """Update a task, as in Progress; print a line if the last one is old enough."""
        super().update(task_id, **changes)
        if not self.disable or time.monotonic() - self._printed < LINE_INTERVAL_S:
            return
        self._printed = time.monotonic()
        task = next(task for task in self.tasks if task.id == task_id)
        parts = [] if task.total is None else [f"{task.completed:,.0f} of {task.total:,.0f}"]
        parts += [str(value) for value in task.fields.values() if value]
        if task.time_remaining is not None and not task.finished:
            parts.append(f"{timedelta(seconds=task.time_remaining)} left")
        line = f"{task.description}: {', '.join(parts)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bar(Protocol):
    """Sets how much of a task is done, and a note on the current step."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Update the bar."""


@contextmanager
def bars() -> Iterator[Callable[[str], Bar]]:
    """Progress on standard error; yields a function from a title to a bar's update."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with ProgressDisplay(*columns, console=notes, transient=True) as progress:

        def bar(title: str) -> Bar:
            task = progress.add_task(title, total=None, note="")

            def update(done: int, total: int, note: str = "", /) -> None:
                progress.update(task, completed=done, total=total, note=note)

            return update

        yield bar


def show(document: BaseModel, as_json: bool, title: str) -> None:
    """Print a document as JSON for programs or as a table for people."""
    if as_json:
        print(document.model_dump_json())  # noqa: T201
        return
    table = Table(title=title, show_header=False)
    for name, value in document.model_dump(mode="json").items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
        elif not isinstance(value, list):
            table.add_row(name, str(value))
    Console().print(table)


def release_given(release: Path | None, labels: Path | None, descriptions: Path | None) -> Release:
    """The release that the options name: a JSON file, or the paper's pair of text files.

    Raises:
        TextError: the options name no release or two, or a file cannot be read.
    """
    from distill.data.releases import read_release, release_from_pairs

    if release is not None:
        if labels is not None or descriptions is not None:
            raise TextError("give either --release or --labels with --descriptions, not both")
        return read_release(release)
    if labels is None:
        raise TextError("give the classes: --release FILE, or --labels FILE [--descriptions FILE]")
    return release_from_pairs(labels, descriptions)


def default_strategy(release: Release) -> TextStrategy:
    """`name+description` if the release has descriptions, else `name`."""
    return "name+description" if any(x.description for x in release.labels) else "name"


def strategy_given(strategy: str | None, release: Release) -> TextStrategy:
    """The given text strategy, or the release's default.

    Raises:
        TextError: there is no such strategy.
    """
    from distill.embeddings.class_prompts import STRATEGIES

    if strategy is None:
        return default_strategy(release)
    for known in STRATEGIES:
        if strategy == known:
            return known
    raise TextError(f"there is no text strategy {strategy!r}: choose {', '.join(STRATEGIES)}")
