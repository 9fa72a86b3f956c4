"""`enrich import` and `enrich export`."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from contract import Release
from enrich_service.core.console import Json, read_session, show, write_session
from enrich_service.core.errors import InvalidInput
from enrich_service.exchange import service
from enrich_service.releases import service as release_service

import_app = typer.Typer(no_args_is_help=True, help="Take in texts from files.")
export_app = typer.Typer(no_args_is_help=True, help="Write texts to files.")

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
Target = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Cannot read {path}: {error}") from error


@import_app.command()
def pairs(
    name: Annotated[str, typer.Argument(help="Name of the new label set.")],
    label2text: File,
    descriptions: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False)] = None,
    context: Annotated[str | None, typer.Option(help="Context of every label.")] = None,
    author: Annotated[str, typer.Option(help="Who.", envvar="USER")] = "",
    check_texts: Annotated[
        bool, typer.Option("--check/--no-check", help="Store faulty texts as rejected.")
    ] = True,
    json: Json = False,
) -> None:
    """Import the paper's label2text.txt, and chatgpt.txt with one text a line."""
    with write_session() as session:
        done = service.import_pairs(
            session,
            name,
            _read(label2text),
            _read(descriptions) if descriptions else None,
            context=context,
            author=author,
            check_texts=check_texts,
        )
    show(done, json=json)


@import_app.command("jsonl")
def import_jsonl(file: File, json: Json = False) -> None:
    """Import what `enrich export jsonl` wrote: all of it or nothing."""
    with write_session() as session, file.open(encoding="utf-8") as lines:
        done = service.import_jsonl(session, lines)
    show(done, json=json)


@import_app.command("release")
def import_release(
    file: File,
    name: Annotated[str | None, typer.Option(help="Another name for it here.")] = None,
    label_set: Annotated[str | None, typer.Option(help="Another label set for it here.")] = None,
    json: Json = False,
) -> None:
    """Import a release; it keeps its hash."""
    try:
        release = Release.model_validate_json(_read(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInput(f"{file} is no release: {where}: {first['msg']}") from error
    with write_session() as session:
        row, _ = release_service.take_in(session, release, name=name, label_set=label_set)
        view = release_service.view(session, row)
    show(view, json=json)


@export_app.command("jsonl")
def export_jsonl(
    label_set: Annotated[str | None, typer.Option(help="Only what belongs to it.")] = None,
    output: Target = None,
) -> None:
    """Write label sets, prompts, texts with their provenance and releases."""
    with read_session() as session:
        lines = service.export_jsonl(session, label_set)
        if output is None:
            for line in lines:
                typer.echo(line, nl=False)
            return
        with output.open("w", encoding="utf-8") as file:
            file.writelines(lines)


@export_app.command("release")
def export_release(
    release: Annotated[str, typer.Argument(help="Name or id.")], output: Target = None
) -> None:
    """Write a release as JSON, with where each text came from."""
    with read_session() as session:
        found = release_service.get(session, release_service.named(session, release))
        body = found.body.decode() + "\n"
    if output is None:
        typer.echo(body, nl=False)
    else:
        output.write_text(body, "utf-8")


@export_app.command("pairs")
def export_pairs(
    release: Annotated[str, typer.Argument(help="Name or id.")],
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where the two files go.")],
) -> None:
    """Write a release as the paper's label2text.txt and chatgpt.txt."""
    with read_session() as session:
        found = release_service.parsed(
            release_service.get(session, release_service.named(session, release))
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label2text.txt").write_text(service.label2text(found), "utf-8")
    (folder / "chatgpt.txt").write_text(service.descriptions(found), "utf-8")
