"""`enrich import` and `enrich export`."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlmodel import Session

from contract import Release, first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.terminal.console import (
    Author,
    Json,
    database,
    progress_bars,
    read_session,
    reading_file,
    show,
    spinner,
    write_session,
)
from enrich_service.exchange import (
    captions,
    class_lists,
    csv_files,
    jsonl_export,
    jsonl_import,
    manifest,
    text_pairs,
)
from enrich_service.exchange.schemas import Imported
from enrich_service.labels import service as label_service
from enrich_service.prompts.schemas import PromptKind
from enrich_service.releases import service as release_service

import_app = typer.Typer(no_args_is_help=True, help="Import texts from files.")
export_app = typer.Typer(no_args_is_help=True, help="Export texts to files.")

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
Target = Annotated[
    Path | None, typer.Option("--output", "-o", help="Output file. Default: standard output.")
]
ReleaseName = Annotated[str, typer.Argument(help="Release name or id.")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Validate texts; store invalid ones as rejected.")
]


def _read(path: Path) -> str:
    with reading_file(path):
        return path.read_text("utf-8-sig")


def _bytes(path: Path) -> bytes:
    with reading_file(path):
        return path.read_bytes()


@contextmanager
def _importing() -> Iterator[Session]:
    with spinner("Importing"), write_session() as session:
        yield session


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Raise InvalidInput if the block cannot write `target`."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(
            f"Cannot write {target} ({error.strerror}): choose another path"
        ) from error


@import_app.command()
def pairs(
    name: Annotated[str, typer.Argument(help="Name of the new label set.")],
    label2text: File,
    descriptions: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False)] = None,
    context: Annotated[str | None, typer.Option(help="Context for every label.")] = None,
    author: Author = "",
    check_texts: Check = True,
    json: Json = False,
) -> None:
    """Import the paper's label2text.txt, and chatgpt.txt with one text per line."""
    with _importing() as session:
        result = text_pairs.import_pairs(
            session,
            name,
            _read(label2text),
            _read(descriptions) if descriptions else None,
            context=context,
            author=author,
            check_texts=check_texts,
        )
    show(result, json=json)


@import_app.command("jsonl")
def import_jsonl(file: File, json: Json = False) -> None:
    """Import a file of `enrich export jsonl`. With an invalid line, nothing is imported."""
    with (
        reading_file(file),
        progress_bars() as progress,
        progress.open(file, "r", encoding="utf-8-sig", description="Importing") as lines,
        write_session() as session,
    ):
        result = jsonl_import.import_jsonl(session, lines)
    show(result, json=json)


@import_app.command("release")
def import_release(
    file: Annotated[
        Path, typer.Argument(exists=True, help="JSON file, or folder of `enrich export folder`.")
    ],
    name: Annotated[str | None, typer.Option(help="New name of the release.")] = None,
    label_set: Annotated[str | None, typer.Option(help="Label set to import into.")] = None,
    json: Json = False,
) -> None:
    """Import a release; it keeps its hash. A folder also contains the prompts."""
    if file.is_dir():
        if name or label_set:
            raise InvalidInput(
                "--name and --label-set do not apply to a folder: import its release.json"
            )
        with _importing() as session:
            result = manifest.read_folder(session, file)
        show(result, json=json)
        return
    try:
        release = Release.model_validate_json(_read(file))
    except ValidationError as error:
        reason = first_error_line(error, "")
        raise InvalidInput(f"{file} is not a release: {reason}") from error
    with _importing() as session:
        row, _ = release_service.import_release(session, release, name=name, label_set=label_set)
        view = release_service.view(session, row)
    show(view, json=json)


@import_app.command("release-csv")
def import_release_csv(
    file: File,
    name: Annotated[str, typer.Argument(help="Release name.")],
    label_set: Annotated[str, typer.Argument(help="Label set; created if it does not exist.")],
    author: Author = "",
    json: Json = False,
) -> None:
    """Create a release from a CSV file. Equal texts have equal hashes."""
    data = _bytes(file)
    with _importing() as session:
        row, _ = csv_files.import_release_csv(
            session, data, name=name, label_set=label_set, author=author
        )
        view = release_service.view(session, row)
    show(view, json=json)


@import_app.command("generations")
def import_generations(file: File, json: Json = False) -> None:
    """Import generations from CSV. Their prompts and label sets must exist."""
    data = _bytes(file)
    with _importing() as session:
        result = csv_files.import_generations_csv(session, data)
    show(result, json=json)


def _import_lists(
    kind: PromptKind, file: Path, label_set: str, author: str, check_texts: bool, json: bool
) -> None:
    lists = class_lists.read(_read(file))
    with _importing() as session:
        result: Imported = class_lists.import_lists(
            session,
            lists,
            label_set=label_set,
            kind=kind,
            author=author,
            check_texts=check_texts,
        )
    show(result, json=json)


LabelSetName = Annotated[
    str, typer.Argument(help="Label set; created from the names if it does not exist.")
]


@import_app.command("descriptors")
def import_descriptors(
    file: File,
    label_set: LabelSetName,
    author: Author = "",
    check_texts: Check = True,
    json: Json = False,
) -> None:
    """Import JSON of class names and descriptors, in the format of classify-by-description."""
    _import_lists(PromptKind.ATTRIBUTES, file, label_set, author, check_texts, json)


@import_app.command("sentences")
def import_sentences(
    file: File,
    label_set: LabelSetName,
    author: Author = "",
    check_texts: Check = True,
    json: Json = False,
) -> None:
    """Import JSON of class names and sentences, in the format of CuPL."""
    _import_lists(PromptKind.SENTENCES, file, label_set, author, check_texts, json)


def _write(lines: Iterable[str], output: Path | None, total: int | None = None) -> int:
    """Write lines to a file or standard output. Returns their number.

    Raises InvalidInput if the file cannot be written.
    """
    count = 0
    lines = iter(lines)
    # Reads the header and the first row before opening the file: a missing release or label set
    # raises here, and must not truncate the file.
    first = list(islice(lines, 2))
    # A progress bar would interleave with lines on the terminal.
    with progress_bars(hidden=output is None and sys.stdout.isatty()) as progress:
        tracked = progress.track(chain(first, lines), total, description="Writing")
        if output is None:
            for line in tracked:
                typer.echo(line, nl=False)
                count += 1
        else:
            with _writing(output), output.open("w", encoding="utf-8", newline="") as file:
                for line in tracked:
                    file.write(line)
                    count += 1
    return count


@export_app.command("jsonl")
def export_jsonl(
    label_set: Annotated[str | None, typer.Option(help="Filter by label set.")] = None,
    output: Target = None,
) -> None:
    """Export label sets, prompts, texts with provenance, and releases."""
    with read_session() as session:
        _write(jsonl_export.export_jsonl(session, label_set), output)


def _release(session: Session, name: str) -> Release:
    return release_service.parsed(
        release_service.get(session, release_service.id_of(session, name))
    )


@export_app.command("folder")
def export_folder(
    release: ReleaseName,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="New or empty folder.")],
    json: Json = False,
) -> None:
    """Export a release for publication: texts in every format, and a manifest.

    `enrich import release FOLDER` imports it into another service, with the same hash.
    """
    with read_session() as session, _writing(folder):
        written = manifest.write_folder(session, _release(session, release), folder)
    show(written, json=json, columns=("release", "hash", "labels", "texts", "models", "files"))


@export_app.command("release-csv")
def export_release_csv(release: ReleaseName, output: Target = None) -> None:
    """Export the texts of a release as CSV."""
    with read_session() as session:
        _write(csv_files.release_csv(_release(session, release)), output)


@export_app.command("labels")
def export_labels(
    label_set: Annotated[str, typer.Argument(help="Label set name.")], output: Target = None
) -> None:
    """Export a label set as CSV, for `enrich labels add --csv`."""
    with read_session() as session:
        _write(label_service.to_csv(session, label_service.get(session, label_set)), output)


@export_app.command("generations")
def export_generations(
    label_set: Annotated[str | None, typer.Option(help="Filter by label set.")] = None,
    output: Target = None,
) -> None:
    """Export generations with provenance as CSV."""
    with read_session() as session:
        _write(csv_files.generations_csv(session, label_set), output)


@export_app.command("reviews")
def export_reviews(
    label_set: Annotated[str | None, typer.Option(help="Filter by label set.")] = None,
    output: Target = None,
) -> None:
    """Export reviews as CSV: who approved, rejected, locked or unlocked which text, and why."""
    with read_session() as session:
        _write(csv_files.reviews_csv(session, label_set), output)


@export_app.command("confusable")
def export_confusable(
    label_set: Annotated[str, typer.Argument(help="Label set name.")], output: Target = None
) -> None:
    """Export confusable labels as CSV, the most similar first."""
    with read_session() as session:
        _write(csv_files.confusable_csv(session, label_set), output)


@export_app.command("descriptors")
def export_descriptors(release: ReleaseName, output: Target = None) -> None:
    """Export the attributes of a release as JSON, in the format of classify-by-description."""
    with read_session() as session:
        _write([class_lists.to_json(class_lists.descriptors(_release(session, release)))], output)


@export_app.command("sentences")
def export_sentences(release: ReleaseName, output: Target = None) -> None:
    """Export the sentences of a release as JSON, in the format of CuPL."""
    with read_session() as session:
        _write([class_lists.to_json(class_lists.sentences(_release(session, release)))], output)


@export_app.command("captions")
def export_captions(
    run_id: Annotated[int, typer.Argument(help="Id of a run over images.")], output: Target = None
) -> None:
    """Export image captions as JSON Lines, for training with L_cap."""
    with database() as engine:
        total, lines = captions.caption_lines(engine, run_id, None)
        written = _write(lines, output, total)
    if written < total:
        typer.echo(
            f"enrich: {total - written} of {total} captions are missing: get them with "
            f"`enrich run resume {run_id}`",
            err=True,
        )


@export_app.command("release")
def export_release(release: ReleaseName, output: Target = None) -> None:
    """Export a release as JSON, with the source of each text."""
    with read_session() as session:
        row = release_service.get(session, release_service.id_of(session, release))
        _write([row.body.decode(), "\n"], output)


@export_app.command("pairs")
def export_pairs(
    release: ReleaseName,
    folder: Annotated[
        Path, typer.Argument(file_okay=False, help="Output folder of the two files.")
    ],
) -> None:
    """Export a release as the paper's label2text.txt and chatgpt.txt."""
    with read_session() as session:
        content = _release(session, release)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "label2text.txt").write_text(text_pairs.label2text(content), "utf-8")
        (folder / "chatgpt.txt").write_text(text_pairs.descriptions(content), "utf-8")
