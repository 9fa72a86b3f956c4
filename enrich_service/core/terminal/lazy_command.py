"""Commands that import their code when they run, which makes `enrich --help` fast.

distill.cli has a copy of this class: the two packages share only `contract`, and importing that
would cost more time than this saves.
"""

from importlib import import_module
from typing import Any

from typer import Typer
from typer.core import TyperCommand
from typer.main import get_command, get_group


class LazyCommand(TyperCommand):
    """A placeholder in the list of commands for the function or Typer app at `target`.

    Args:
        name: Name of the command.
        target: "module:name" of the function or app.
        summary: Help text in the list: the first paragraph of the real help.
    """

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def load(self) -> Any:  # noqa: ANN401 - Typer does not export the type of a command
        """Import the real command or command group."""
        module, attribute = self._target.split(":")
        command = getattr(import_module(module), attribute)
        if isinstance(command, Typer):
            return get_group(command)
        app = Typer(add_completion=False)
        app.command(self.name)(command)
        return get_command(app)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Any = None,  # noqa: ANN401 - a Typer context
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Parse `args` with the real command, which the returned context runs."""
        return self.load().make_context(info_name, args, parent, **extra)
