"""`enrich labels`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from contract import first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.terminal.console import Json, read_session, show, write_session
from enrich_service.core.terminal.lazy_command import LazyCommand
from enrich_service.core.text import unique_keys
from enrich_service.labels import files, service
from enrich_service.labels.name_warnings import suspicious_names
from enrich_service.labels.schemas import Confusable, LabelIn

MAX_WARNINGS = 20


class _Commands(TyperGroup):
    """The commands of this module and `extend`, which lives above runs and releases."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__init__(**options)
        target = "enrich_service.releases.extend:extend"
        summary = "Add classes to a label set, describe them and create a release with them."
        self.add_command(LazyCommand("extend", target, summary))


app = typer.Typer(cls=_Commands, no_args_is_help=True, help="Label sets: named lists of classes.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the new label set.")],
    labels: Annotated[list[str] | None, typer.Argument(help="Class names.")] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV or TSV file with columns key,name,context; or one name per line.",
        ),
    ] = None,
    from_json: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="JSON file: a list of names or of {key, name, context}.",
        ),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder with one folder per class; repeatable."
        ),
    ] = None,
    label2text: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="label2text.txt: lines `key index name_with_underscores`.",
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context for labels without one, e.g. 'a bird'.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a label set from names, a JSON or CSV file, folders or a label2text.txt."""
    from_folder = bool(folder) or label2text is not None
    if sum((bool(labels), csv is not None, from_json is not None, from_folder)) != 1:
        raise InvalidInput(
            "Give exactly one of: class names, --csv, --from-json, --folder and/or --label2text"
        )
    origins: list[str] = []
    errors: list[str] = []
    if csv is not None:
        parsed, origins, errors = files.from_table(csv.read_bytes())
    elif from_json is not None:
        parsed = service.from_json(from_json.read_bytes())
    elif folder:
        parsed = service.from_folders(folder, label2text)
    elif label2text is not None:
        parsed = service.read_label2text(label2text)
    else:
        parsed = [LabelIn(name=label) for label in labels or ()]
    if context is not None:
        parsed = [
            label if label.context else label.model_copy(update={"context": context})
            for label in parsed
        ]
    with write_session() as session:
        view = service.view(session, service.create(session, name, parsed, origins, errors))
    warnings = suspicious_names([label.name for label in parsed])
    for warning in warnings[:MAX_WARNINGS]:
        typer.echo(f"warning: {warning}", err=True)
    if len(warnings) > MAX_WARNINGS:
        typer.echo(f"warning: and {len(warnings) - MAX_WARNINGS} more such names", err=True)
    show(view, json=json)


@app.command("list")
def list_(json: Json = False) -> None:
    """List label sets."""
    with read_session() as session:
        show(service.listing(session, limit=None), json=json)


@app.command("show")
def show_(
    name: str,
    limit: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 100,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    search: Annotated[str, typer.Option(help="Filter by name or key.")] = "",
    json: Json = False,
) -> None:
    """Show the labels of a label set."""
    with read_session() as session:
        label_set = service.get(session, name)
        page = service.page(session, label_set, search=search, limit=limit, offset=offset)
    show(page if json else page.items, json=json)
    if not json and page.next_offset is not None:
        typer.echo(f"… {page.total} in total: show more with --offset {page.next_offset}")


@app.command()
def confusable(
    name: str,
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help='JSON: {"mallard": ["teal", "gadwall"]}, by key.'
        ),
    ] = None,
    from_names: Annotated[
        bool,
        typer.Option("--from-names", help="Mark labels whose names end in the same words."),
    ] = False,
    json: Json = False,
) -> None:
    """Set which labels are easily confused, for prompts such as `distinct`.

    `enrich jobs confusable JOB` takes them from a training job.
    """
    if (file is not None) == from_names:
        raise InvalidInput("Give either --file or --from-names")
    with write_session() as session:
        label_set = service.get(session, name)
        if file is None:
            confusable = service.guess_confusable(session, label_set)
        else:
            confusable = _read_confusable(file)
            service.set_confusable(session, label_set, confusable.confusable)
    show(confusable, json=json)


def _read_confusable(file: Path) -> Confusable:
    try:
        lists = jsonlib.loads(file.read_bytes(), object_pairs_hook=unique_keys("lists"))
        return Confusable.model_validate({"confusable": lists})
    except (ValueError, RecursionError) as error:
        reason = first_error_line(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidInput(
            f'{file} is not a JSON object like {{"mallard": ["teal"]}}: {reason}'
        ) from error


@app.command()
def remove(name: str) -> None:
    """Delete an unused label set."""
    with write_session() as session:
        service.remove(session, service.get(session, name))
