"""The `enrich` command. Each sub-command imports its code when it runs."""

import gc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from enrich_service.core.errors import UserError
from enrich_service.core.terminal.lazy_command import LazyCommand

GC_THRESHOLD = 20_000  # new objects between two garbage collections

# In the order of `enrich --help`: name, module:attribute in enrich_service, help.
COMMANDS = (
    ("serve", "serve:serve", "Run the service until stopped."),
    (
        "describe",
        "runs.commands:describe",
        "Describe class names. Stored answers are reused at no cost.",
    ),
    (
        "try",
        "trials.commands:try_",
        "Try an unsaved prompt. Its answers are printed, not stored.",
    ),
    (
        "compare",
        "trials.commands:compare",
        "Compare stored answers of two prompt versions or models over a label set.",
    ),
    ("labels", "labels.commands:app", "Label sets: named lists of classes."),
    ("prompts", "prompts.commands:app", "Prompts, their versions and aliases."),
    ("run", "runs.commands:app", "Enrichment of whole label sets."),
    ("texts", "generations.commands:app", "Texts: list, edit, write, approve, reject, lock."),
    ("release", "releases.commands:app", "Releases: immutable texts for every label."),
    ("import", "exchange.commands:import_app", "Import texts from files."),
    ("export", "exchange.commands:export_app", "Export texts to files."),
    ("jobs", "jobs.commands:app", "Training jobs."),
    ("students", "students.commands:app", "Registered students, their versions and aliases."),
    (
        "backup",
        "operation.commands:backup",
        "Copy the database to FILE and verify the copy. The service may be running.",
    ),
    (
        "restore",
        "operation.commands:restore",
        "Restore the database from a backup. The old database is kept next to it.",
    ),
    (
        "doctor",
        "operation.commands:doctor",
        "Check the installation for problems. The exit status is 1 if there are any.",
    ),
    ("keys", "keys.commands:app", "API keys and the audit log."),
    ("llm", "local_model.commands:app", "A small language model on this machine."),
    (
        "settings",
        "operation.commands:settings",
        "List settings and their environment variables. Secrets are masked.",
    ),
)


class _Commands(TyperGroup):
    """Print a UserError as one line on standard error and exit with status 1."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__init__(**options)
        for name, target, summary in COMMANDS:
            self.add_command(LazyCommand(name, f"enrich_service.{target}", summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as in the base class
        if args[0] not in self.commands:
            from contract.programs import refuse_command_of_other  # slow, and needed only here

            refuse_command_of_other("enrich", args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as in the base class
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
    help="Generate, version and release class descriptions.",
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version  # slow to import

        typer.echo(f"enrich {version('enrich-distill')}")
        raise typer.Exit


@app.callback()
def _configure(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    # An answer creates thousands of objects that are soon freed by reference counting.
    gc.set_threshold(GC_THRESHOLD)


if __name__ == "__main__":
    app()
