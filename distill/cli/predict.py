"""`distill predict`: photos to classes, by a classifier folder. Imports no torch."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.cli.console import JsonOption, bars, notes, one_line_errors
from distill.errors import ClassifierError, UnreadableImages

if TYPE_CHECKING:
    from distill.runtime import Classifier, Prediction
    from distill.runtime.photo_files import Photo


@dataclass
class Results:
    """What became of the photos. Thumbnails are JPEGs, made for a contact sheet alone."""

    names: list[str] = field(default_factory=list)
    predictions: list["Prediction"] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """What is wanted of each photo: its `top` classes, and what else."""

    top: int
    reasons: bool = False
    thumbnails: bool = False


@one_line_errors
def predict(
    folder: Annotated[Path, typer.Argument(help="Classifier folder (`distill export`).")],
    photos: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns, or - for standard input.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each photo.")] = 5,
    add: Annotated[
        list[str] | None,
        typer.Option(help='A new class: "NAME=what it looks like", or NAME alone; repeat it.'),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            help='Photos that describe a class besides its text: "NAME=folder"; repeat it.'
        ),
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="Enrichment service that describes a NAME alone.")
    ] = None,
    allow_near: Annotated[
        bool, typer.Option("--allow-near", help="Add classes that lie too near to another one.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the added classes in the folder.")
    ] = False,
    why: Annotated[
        bool,
        typer.Option("--why", help="What of its class a photo shows, and of the runner-up."),
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="Contact sheet to write, an HTML file.")] = None,
) -> None:
    """Classify photos, also into classes that are added here by a description."""
    from distill.runtime import Classifier
    from distill.runtime.photo_files import find_photos

    if as_csv and (as_json or why):
        raise ClassifierError("--csv goes with neither --json nor --why: leave one of them out")
    classifier = Classifier.load(folder)
    for each in add or ():
        add_class(classifier, each, service, allow_near=allow_near)
    for each in examples or ():
        add_photos(classifier, each)
    if save and (add or examples):
        classifier.save()
    if why:
        tell_without_reasons(classifier, folder)
    found = find_photos(photos)
    with bars() as bar:
        shown = Shown(top, reasons=why, thumbnails=html is not None)
        results = classify(classifier, found, shown, bar("Photos"))
    if html is not None:
        write_sheet(html, folder.name, results)
    if as_json:
        print_json(results)
    elif as_csv:
        print_csv(results)
    elif results.names:
        print_tables(results)
    for reason in results.unreadable:
        print(f"distill: cannot read {reason}", file=sys.stderr)  # noqa: T201
    if results.unreadable:
        raise typer.Exit(1)


def add_class(
    classifier: "Classifier", argument: str, service: str | None, *, allow_near: bool
) -> None:
    """Add the class of one --add, described where only its name is given."""
    name, equals, text = argument.partition("=")
    if equals:
        classifier.add(name, text, allow_near=allow_near)
        return
    name = classifier.check_name(name)  # before a language model is asked
    from distill.runtime.describe import describe  # half of the start is httpx

    texts = describe(name, classifier.manifest.text, service)
    entry = classifier.add(name, texts, allow_near=allow_near)
    for shown in entry.texts if texts else ():
        notes.print(f"added: {shown}", markup=False)


def add_photos(classifier: "Classifier", argument: str) -> None:
    """Let the photos of one --examples describe their class."""
    from distill.runtime.photo_files import find_photos

    name, equals, folder = argument.partition("=")
    if not equals or not Path(folder).exists():
        raise ClassifierError(
            f'--examples "{argument}" names no photos: write "NAME=folder" with a folder or file'
        )
    photos = [Path(photo.name) for photo in find_photos([folder])]
    entry = classifier.add_photos(name, photos)
    notes.print(f"{entry.photos} photos describe {entry.name}", markup=False)


def classify(
    classifier: "Classifier",
    photos: "Sequence[Photo]",
    shown: Shown,
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
            results.predictions += classifier.classify(images, shown.top, reasons=shown.reasons)
        results.thumbnails += map(thumbnail, images) if shown.thumbnails else []
        progress(min(start + BATCH, len(photos)), len(photos))
    return results


def tell_without_reasons(classifier: "Classifier", folder: Path) -> None:
    """Tell that there will be no reasons, where there are none."""
    if not classifier.has_reasons:
        notes.print(
            f"{folder} has no attributes of its classes, so there are no reasons: export a run "
            "whose release has descriptions",
            markup=False,
            soft_wrap=True,
        )


def print_tables(results: Results) -> None:
    """A row for each photo: the best class, then the runners-up. Then the reasons, if any."""
    table = Table("photo", "class", "%", "runners-up")
    for name, prediction in zip(results.names, results.predictions, strict=True):
        best, *others = prediction.candidates
        shown = escape(best.name) + (" [dim](unknown?)[/dim]" if prediction.unknown else "")
        runners = ", ".join(f"{each.name} {100 * each.probability:.0f}" for each in others)
        table.add_row(escape(name), shown, f"{100 * best.probability:.0f}", escape(runners))
    Console().print(table)
    if any(prediction.reasons for prediction in results.predictions):
        print_reasons(results)


def print_reasons(results: Results) -> None:
    """A row for each photo: what speaks for its class, and what tells it from the runner-up."""
    table = Table(
        "photo",
        "what speaks for it",
        "what tells it from the runner-up",
        caption="in brackets: deviations above the mean over other photos",
    )
    for name, prediction in zip(results.names, results.predictions, strict=True):
        reasons = prediction.reasons
        if reasons is None:
            continue
        speaking = [f"{x.text} ({x.evidence:+.1f})" for x in reasons.attributes if x.speaks]
        differences = [f"{x.name}: {x.text} ({x.evidence:+.1f})" for x in reasons.differences]
        first = escape(f"{name}: {prediction.best.name}")
        second = escape("\n".join(speaking) or "nothing clearly")
        table.add_row(first, second, escape("\n".join(differences)), end_section=True)
    Console().print(table)


def print_json(results: Results) -> None:
    """One document: the photos with their classes, and those that cannot be read."""
    photos = [
        {"photo": name, **asdict(prediction)}
        for name, prediction in zip(results.names, results.predictions, strict=True)
    ]
    print(json.dumps({"photos": photos, "unreadable": results.unreadable}))  # noqa: T201


def print_csv(results: Results) -> None:
    """A line for each photo and class."""
    writer = csv.writer(sys.stdout)
    writer.writerow(("photo", "rank", "key", "name", "probability", "cosine", "unknown"))
    for name, prediction in zip(results.names, results.predictions, strict=True):
        for rank, each in enumerate(prediction.candidates, start=1):
            figures = (f"{each.probability:.6f}", f"{each.cosine:.6f}", prediction.unknown)
            writer.writerow((name, rank, each.key, each.name, *figures))


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
    notes.print(f"contact sheet: {path}", markup=False)
