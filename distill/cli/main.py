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
        "Accuracy on unseen classes with k labelled images per class, over several samples.",
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
        "Export a run as a classifier folder that runs without torch, verified against PyTorch.",
    ),
    (
        "predict",
        "predict:predict",
        "Classify photos, optionally with new classes added by a description.",
    ),
    (
        "serve",
        "serve:serve",
        "Serve a classifier over REST, with a web page to try it.",
    ),
    ("worker", "worker:worker", "Run training jobs from the service, one at a time."),
    ("data", "data:app", "Check, split and prepare data sets."),
)


class _Commands(TyperGroup):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__init__(**options)
        for name, target, summary in COMMANDS:
            self.add_command(LazyCommand(name, f"distill.cli.{target}", summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as in the base class
        if args[0] not in self.commands:
            from contract.programs import refuse_command_of_other  # slow, and needed only here

            refuse_command_of_other("distill", args[0])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, evaluate, export and serve students distilled from a CLIP teacher.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # slow to import, and needed only here

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
