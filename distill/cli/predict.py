"""`distill predict`: classifies photos with a classifier folder. Does not import torch."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from distill.cli.console import JsonOption, bars, notes, one_line_errors
from distill.errors import ClassifierError, DataError, UnreadableImages, counted, some

if TYPE_CHECKING:
    from distill.runtime import Classifier, Prediction
    from distill.runtime.photo_files import Photo


@dataclass
class Results:
    """Results for all photos. Thumbnails are JPEGs, made only for a contact sheet."""

    names: list[str] = field(default_factory=list)
    predictions: list["Prediction"] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def rows(self) -> "Iterator[tuple[str, Prediction]]":
        """Each photo's name as text, and its prediction."""
        from distill.runtime.photo_files import printable

        return zip(map(printable, self.names), self.predictions, strict=True)


@dataclass(frozen=True)
class Wanted:
    """What to compute for each photo: its `top` classes, and optionally more."""

    top: int
    reasons: bool = False
    thumbnails: bool = False


@dataclass(frozen=True)
class Changes:
    """Changes of the classes, made in this order: the --remove, --add and --examples arguments."""

    remove: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


@one_line_errors
def predict(
    folder: Annotated[Path, typer.Argument(help="Classifier folder (`distill export`).")],
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, patterns, or - for standard input. Optional with --save."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show per photo.")] = 5,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="NAME of a class to remove, before classes are added (repeatable)."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(help='New class: "NAME=what it looks like", or just NAME (repeatable).'),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            help="Example photos for a class, used with its text: "
            '"NAME=folder, file or pattern" (repeatable).'
        ),
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="Enrichment service that describes a NAME without a text.")
    ] = None,
    allow_near: Annotated[
        bool, typer.Option("--allow-near", help="Add classes even if very similar to another one.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Save the changed classes in the folder.")
    ] = False,
    why: Annotated[
        bool,
        typer.Option("--why", help="Explain each prediction by attributes of its class."),
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="Contact sheet to write, an HTML file.")] = None,
) -> None:
    """Classify photos, optionally with new classes added by a description."""
    from distill.runtime import Classifier
    from distill.runtime.photo_files import find_photos, printable

    if as_csv and (as_json or why):
        raise ClassifierError(
            "--csv cannot be combined with --json or --why: leave one of them out"
        )
    changes = Changes(tuple(remove or ()), tuple(add or ()), tuple(examples or ()))
    check_changes(changes, photos, save=save)
    if html is not None:
        check_sheet(html)
    found_photos = find_photos(photos or ())
    if save:
        check_exist(found_photos)
    classifier = Classifier.load(folder)
    change_classes(classifier, changes, service, allow_near=allow_near)
    if save:
        classifier.save()
        count = counted(len(classifier.classes), "class")
        notes.print(f"saved: {count} in {folder}", markup=False, soft_wrap=True)
    if why:
        note_missing_reasons(classifier, folder)
    with bars() as bar:
        wanted = Wanted(top, reasons=why, thumbnails=html is not None)
        results = classify(classifier, found_photos, wanted, bar("Photos"))
    if as_json:
        print_json(results)
    elif as_csv:
        print_csv(results)
    elif results.names:
        print_tables(results)
    for reason in results.unreadable:
        print(f"distill: cannot read {printable(reason)}", file=sys.stderr)  # noqa: T201
    if html is not None:
        write_sheet(html, folder.name, results)
    if results.unreadable:
        raise typer.Exit(1)


def check_changes(changes: Changes, photos: Sequence[str] | None, *, save: bool) -> None:
    """Check that there is something to do.

    Raises:
        ClassifierError: nothing to save, or neither photos nor classes to save.
    """
    if save and changes == Changes():
        raise ClassifierError("nothing to save: give --add, --examples or --remove with --save")
    if not photos and not save:
        raise ClassifierError("no photos: name files, folders or patterns to classify")


def change_classes(
    classifier: "Classifier", changes: Changes, service: str | None, *, allow_near: bool
) -> None:
    """Remove classes, then add others, then combine classes with example photos."""
    for name in changes.remove:
        removed = classifier.remove(name)
        notes.print(f"removed: {removed.name}", markup=False, soft_wrap=True)
    for argument in changes.add:
        add_class(classifier, argument, service, allow_near=allow_near)
    for argument in changes.examples:
        add_photos(classifier, argument)


def add_class(
    classifier: "Classifier", argument: str, service: str | None, *, allow_near: bool
) -> None:
    """Add the class in an --add argument; without a text, a language model describes it."""
    from distill.runtime.photo_files import printable

    if printable(argument) != argument:
        raise ClassifierError(f'--add "{printable(argument)}" is not UTF-8: type it again')
    name, equals, text = argument.partition("=")
    if equals:
        classifier.add(name, text, allow_near=allow_near)
        return
    name = classifier.check_name(name)  # before the language model is called
    from distill.runtime.describe import describe  # imports httpx, which is slow

    texts = describe(name, classifier.manifest.text, service)
    entry = classifier.add(name, texts, allow_near=allow_near)
    for added_text in entry.texts if texts else ():
        notes.print(f"added: {added_text}", markup=False, soft_wrap=True)


def add_photos(classifier: "Classifier", argument: str) -> None:
    """Add the example photos in an --examples argument to their class."""
    from distill.runtime.photo_files import STDIN, find_photos, missing_files

    name, equals, source = argument.partition("=")
    photos = find_photos([source]) if equals and source not in ("", STDIN) else []
    if not photos or missing_files(photos):
        raise ClassifierError(
            f'--examples "{argument}" names no photos: write "NAME=PATH" with a folder, a file or '
            "a pattern"
        )
    entry = classifier.add_photos(name, [Path(photo.name) for photo in photos])
    notes.print(f"{entry.name}: {counted(entry.photos, 'example photo')}", markup=False)


def check_exist(photos: "Sequence[Photo]") -> None:
    """Check that all files exist, before a class is saved.

    Raises:
        DataError: one does not.
    """
    from distill.runtime.photo_files import missing_files

    if missing := missing_files(photos):
        raise DataError(f"nothing was saved, because files do not exist: {some(missing)}")


def classify(
    classifier: "Classifier",
    photos: "Sequence[Photo]",
    wanted: Wanted,
    progress: Callable[[int, int], None],
) -> Results:
    """Classify photos in batches; those that cannot be read are collected."""
    from distill.runtime.classifier import BATCH
    from distill.runtime.contact_sheet import thumbnail

    results = Results()
    for start in range(0, len(photos), BATCH):
        images = []
        for photo in photos[start : start + BATCH]:
            try:
                images.append(photo.open())
                results.names.append(photo.name)
            except UnreadableImages as error:
                results.unreadable += error.images
        if images:
            results.predictions += classifier.classify(images, wanted.top, reasons=wanted.reasons)
        results.thumbnails += map(thumbnail, images) if wanted.thumbnails else []
        progress(min(start + BATCH, len(photos)), len(photos))
    return results


def note_missing_reasons(classifier: "Classifier", folder: Path) -> None:
    """Print a note if the classifier cannot give reasons."""
    if not classifier.has_reasons:
        notes.print(
            f"{folder} has no class attributes, so predictions have no reasons: export a run whose "
            "release has descriptions",
            markup=False,
            soft_wrap=True,
        )


def print_tables(results: Results) -> None:
    """Print a row for each photo: the best class and the runners-up. Then the reasons, if any."""
    table = Table(Column("photo", overflow="fold"), "class", "%", "runners-up")
    for name, prediction in results.rows():
        best, *others = prediction.candidates
        label = escape(best.name) + (" [dim](unknown?)[/dim]" if prediction.unknown else "")
        runners_up = ", ".join(f"{other.name} {100 * other.probability:.0f}" for other in others)
        table.add_row(escape(name), label, f"{100 * best.probability:.0f}", escape(runners_up))
    Console().print(table)
    if any(prediction.reasons for prediction in results.predictions):
        print_reasons(results)


def print_reasons(results: Results) -> None:
    """Print a row for each photo: supporting attributes, and differences from the runner-up."""
    table = Table(
        Column("photo", overflow="fold"),
        "supporting attributes",
        "differences from the runner-up",
        caption="in brackets: deviations above the mean over other photos",
    )
    for name, prediction in results.rows():
        reasons = prediction.reasons
        if reasons is None:
            continue
        supporting = [f"{x.text} ({x.evidence:+.1f})" for x in reasons.attributes if x.supports]
        differences = [f"{x.name}: {x.text} ({x.evidence:+.1f})" for x in reasons.differences]
        first = escape(f"{name}: {prediction.best.name}")
        second = escape("\n".join(supporting) or "none")
        table.add_row(first, second, escape("\n".join(differences)), end_section=True)
    Console().print(table)


def print_json(results: Results) -> None:
    """Print one JSON document: the photos with their classes, and the unreadable photos."""
    photos = [
        {"photo": name, **asdict(prediction)}
        for name, prediction in zip(results.names, results.predictions, strict=True)
    ]
    print(json.dumps({"photos": photos, "unreadable": results.unreadable}))  # noqa: T201


def print_csv(results: Results) -> None:
    """Print a CSV row for each photo and class."""
    writer = csv.writer(sys.stdout)
    writer.writerow(("photo", "rank", "key", "name", "probability", "cosine", "unknown"))
    for name, prediction in results.rows():
        for rank, candidate in enumerate(prediction.candidates, start=1):
            scores = (f"{candidate.probability:.6f}", f"{candidate.cosine:.6f}")
            writer.writerow(
                (name, rank, candidate.key, candidate.name, *scores, prediction.unknown)
            )


def check_sheet(path: Path) -> None:
    """Check, before photos are classified, that the contact sheet can be written.

    Raises:
        ClassifierError: it is a folder, or its folder does not exist.
    """
    try:
        if path.is_dir():
            reason = "it is a folder"
        elif not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        else:
            return
    except OSError as error:
        reason = str(error.strerror)
    raise ClassifierError(f"cannot write {path} ({reason}): choose another --html")


def write_sheet(path: Path, title: str, results: Results) -> None:
    """Write the contact sheet.

    Raises:
        ClassifierError: it cannot be written.
    """
    from distill.runtime.contact_sheet import Tile, contact_sheet

    rows = zip(results.names, results.thumbnails, results.predictions, strict=True)
    try:
        path.write_text(contact_sheet(title, [Tile(*row) for row in rows]), encoding="utf-8")
    except OSError as error:
        raise ClassifierError(f"cannot write {path} ({error.strerror})") from None
    notes.print(f"contact sheet: {path}", markup=False, soft_wrap=True)
