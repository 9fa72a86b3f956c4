"""The commands of the other program of this package, `enrich` or `distill`.

Its entry point is imported only when a command is unknown: neither program imports the other.
`contract/__init__.py` does not import this module, which needs Typer.
"""

from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from typer import Exit, echo
from typer.core import TyperGroup
from typer.main import get_command

DISTRIBUTION: Final = "enrich-distill"


def refuse_command_of_other(program: str, command: str) -> None:
    """Exit with the right one if `program` does not have `command` but the other program does."""
    try:
        scripts = distribution(DISTRIBUTION).entry_points.select(group="console_scripts")
    except PackageNotFoundError:
        return
    for script in scripts:
        if script.name == program:
            continue
        try:
            group = get_command(script.load())
        except ImportError:  # not all requirements of the other program are installed
            continue
        if isinstance(group, TyperGroup) and command in group.commands:
            echo(
                f"{program}: there is no command '{program} {command}': "
                f"did you mean '{script.name} {command}'?",
                err=True,
            )
            raise Exit(2)
