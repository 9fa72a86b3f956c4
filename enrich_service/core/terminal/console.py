"""Settings, database sessions, input and output of the commands."""

import json as jsonlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from contract.errors import error_message, first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.money import in_dollars
from enrich_service.core.settings import Settings, environment_names
from enrich_service.core.storage.database import make_engine, reading, storage_error, writing
from enrich_service.core.storage.prestart import prestart

B = TypeVar("B", bound=BaseModel)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Author = Annotated[str, typer.Option(help="Author name.", envvar="USER")]


def load_settings() -> Settings:
    """Load the settings from the environment. Raises InvalidInput, naming the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"ENRICH_{name.upper()}"
        raise InvalidInput(f"{variable}: {error_message(first)}") from error
    except SettingsError as error:
        name = str(error).split('"')[1]  # the field name is only in the message
        expected = Settings.model_fields[name].description
        raise InvalidInput(
            f"{environment_names(name)[0]} is not valid JSON; expected: {expected}"
        ) from error


@contextmanager
def database(settings: Settings | None = None) -> Iterator[Engine]:
    """Open the database of the settings and migrate it."""
    settings = settings or load_settings()
    engine = make_engine(settings.sqlalchemy_url)
    try:
        prestart(engine, settings)
        yield engine
    except (DBAPIError, OSError) as error:
        known = storage_error(error)
        if known is None:
            raise
        raise known from error
    finally:
        engine.dispose()


@contextmanager
def read_session() -> Iterator[Session]:
    """A read session on the configured database."""
    with database() as engine, reading(engine) as session:
        yield session


@contextmanager
def write_session() -> Iterator[Session]:
    """A write session on the configured database."""
    with database() as engine, writing(engine) as session:
        yield session


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Turn an error of the block, which reads `path`, into InvalidInput."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise InvalidInput(f"Cannot read {path}: {error.strerror}") from error


def request(model: type[B], /, **values: Any) -> B:  # noqa: ANN401 - values of options
    """Validate a command's options as a `model`. Raises InvalidInput for the first invalid one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(first_error_line(error, "")) from None


def spinner(text: str) -> Status:
    """A spinner on standard error while a block runs; nothing if it is not a terminal."""
    return Console(stderr=True).status(text)


def progress_bars(*, hidden: bool = False) -> Progress:
    """Progress bars on standard error; nothing if `hidden` or if it is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # In a file, even an empty bar would print a line.
        disable=hidden or not console.is_terminal,
    )


def show(data: BaseModel | Sequence[BaseModel], *, json: bool, columns: Sequence[str] = ()) -> None:
    """Print models: as one JSON document, or as a table of `columns` (default: all fields)."""
    plain = TypeAdapter(Any).dump_python(data, mode="json")
    if json:
        typer.echo(jsonlib.dumps(plain, indent=2, ensure_ascii=False))
        return
    console = Console()
    if isinstance(plain, dict):
        table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
        for name in columns or plain:
            table.add_row(Text(name, style="bold"), Text(_cell(name, plain[name])))
    else:
        names = columns or (list(plain[0]) if plain else ())
        table = Table(*names, box=None)
        for row in plain:
            table.add_row(*(Text(_cell(name, row[name])) for name in names))
        if not plain:
            table = Table("none", box=None, show_header=True)
    console.print(table)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that folds long values instead of cutting them, or "none" without rows."""
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table if rows else Table("none", box=None))


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith("_usd") and isinstance(value, int | float):
        return in_dollars(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
