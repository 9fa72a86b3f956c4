"""The `enrich` command. Each of its commands imports its code when it runs."""

import gc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from enrich_service.core.errors import UserError
from enrich_service.core.lazy_command import LazyCommand

GC_THRESHOLD = 20_000  # new objects between two searches for unreachable cycles

# In the order of `enrich --help`: name, module and attribute below enrich_service, help.
COMMANDS = (
    ("serve", "serve:serve", "Run the service until it is stopped."),
    (
        "describe",
        "runs.commands:describe",
        "Describe class names now. What was answered before costs nothing.",
    ),
    (
        "try",
        "trials.commands:try_",
        "Try a prompt that is not saved. Its answers are shown and stored nowhere.",
    ),
    (
        "compare",
        "trials.commands:compare",
        "Compare two prompt versions, or two models, over a label set. Asks no model.",
    ),
    ("labels", "labels.commands:app", "Label sets: named lists of classes."),
    ("prompts", "prompts.commands:app", "Prompts, their versions and aliases."),
    ("run", "runs.commands:app", "Enrichment of whole label sets."),
    ("texts", "generations.commands:app", "Texts: look, edit, write, approve, reject, lock."),
    ("release", "releases.commands:app", "Releases: frozen texts for every label."),
    ("import", "exchange.commands:import_app", "Take in texts from files."),
    ("export", "exchange.commands:export_app", "Write texts to files."),
    ("jobs", "jobs.commands:app", "Training jobs."),
    (
        "backup",
        "operation.commands:backup",
        "Copy the database to FILE and check the copy, while the service goes on.",
    ),
    (
        "restore",
        "operation.commands:restore",
        "Put a backup in the place of the database. What was there is kept beside it.",
    ),
    (
        "doctor",
        "operation.commands:doctor",
        "Look for what is wrong, or soon will be; the exit status is 1 if anything is.",
    ),
    ("keys", "keys.commands:app", "API keys, and what was done with them."),
    ("llm", "local_model.commands:app", "A small real language model on this machine."),
    (
        "settings",
        "operation.commands:settings",
        "List all settings with the environment variables that set them; secrets are masked.",
    ),
)


class _Commands(TyperGroup):
    """Prints a user's mistake as one line on standard error, and exits with 1."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as the base class has it
        super().__init__(**options)
        for name, target, summary in COMMANDS:
            self.add_command(LazyCommand(name, f"enrich_service.{target}", summary))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as the base class has it
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"enrich: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Class names in; versioned and released texts out.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # slow to import, and needed here alone

        typer.echo(f"enrich {version('enrich-distill')}")
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
    # An answer makes thousands of objects that are soon freed by their reference counts.
    gc.set_threshold(GC_THRESHOLD)


if __name__ == "__main__":
    app()
