"""Commands that import their code when they run: `distill --help` needs none of it.

enrich_service.core has a copy of this class: the two packages share only `contract`, which is slow
to import.
"""

from importlib import import_module
from typing import Any

from typer import Typer
from typer.core import TyperCommand
from typer.main import get_command, get_group


class LazyCommand(TyperCommand):
    """Stands in the list of commands for the function or Typer app at `target`, "module:name".

    `summary` is what the list says of it: the first paragraph of the real help.
    """

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def load(self) -> Any:  # noqa: ANN401 - Typer does not export the type of a command
        """The real command or group of commands."""
        module, attribute = self._target.split(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, Typer):
            return get_group(found)
        app = Typer(add_completion=False)
        app.command(self.name)(found)
        return get_command(app)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Any = None,  # noqa: ANN401 - a context, see load
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Parse `args` as the real command does; the context runs that one."""
        return self.load().make_context(info_name, args, parent, **extra)
