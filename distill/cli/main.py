"""The `distill` command. Each of its commands imports its code when it runs."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from distill.cli.lazy_command import LazyCommand
from distill.training.openmp import let_idle_threads_sleep

# In the order of `distill --help`: name, module and attribute below distill.cli, help.
COMMANDS = (
    ("init", "init:init", "Write a commented training configuration for a data set."),
    ("train", "train:train", "Distil a student and write its report."),
    ("report", "train:report", "Render report.html again from a finished run."),
    (
        "evaluate",
        "evaluate:evaluate",
        "Accuracy of a teacher or a student on one split, against the texts of a release.",
    ),
    (
        "few-shot",
        "few_shot:few_shot",
        "Accuracy on unseen classes with k labelled images of each, over several samples of them.",
    ),
    (
        "explain",
        "explain:explain",
        "The predicted classes of images, and the attributes that support each of them.",
    ),
    (
        "learn-prompt",
        "learn_prompt:learn_prompt",
        'Learn a context that replaces "a photo of", on the seen classes (CoOp).',
    ),
    ("text-bank", "evaluate:text_bank", "Encode the texts of a release with a teacher."),
    (
        "diagnose",
        "evaluate:diagnose",
        "Similarity of class texts: cosines, spectrum, the most confusable pairs.",
    ),
    (
        "export",
        "export:export",
        "Write a classifier that runs without torch, checked against PyTorch image by image.",
    ),
    (
        "predict",
        "predict:predict",
        "Classify photos, also into classes that are added here by a description.",
    ),
    (
        "serve",
        "serve:serve",
        "Serve a classifier: photos in, classes out, with a page to try it.",
    ),
    ("worker", "worker:worker", "Take training jobs from the service, one after the other."),
    ("data", "data:app", "Data sets: check, split, arrange."),
)


class _Commands(TyperGroup):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as the base class has it
        super().__init__(**options)
        for name, target, summary in COMMANDS:
            self.add_command(LazyCommand(name, f"distill.cli.{target}", summary))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Class texts and images in; a trained student and a report out.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # slow to import, and needed here alone

        typer.echo(f"distill {version('enrich-distill')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    let_idle_threads_sleep()  # before any command imports torch
