"""`distill data prepare`, `distill data split` and `distill data check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from distill.cli.console import CACHE, CacheOption, JsonOption, bars, notes, one_line_errors
from distill.errors import DataError, UserError, counted, some

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contract import SplitName
    from distill.data.files.packed_image import ImagePath
    from distill.data.preparation.check import DataCheck, Duplicates
    from distill.data.sources.labelled_image import LabelledImage, Source

SHEET_IMAGES: Final = 6  # of each class
SHEET_CLASSES: Final = 200
LISTED: Final = 5  # items listed of each kind of finding
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders or with train/; a CSV, TSV, JSONL or Parquet file with "
        "path, label; WebDataset shards; a COCO or YOLO export; a Hugging Face dataset (folder or "
        "hf:NAME)."
    ),
]

app = typer.Typer(no_args_is_help=True, help="Check, split and prepare data sets.")


@app.command()
@one_line_errors
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="CaltechBirds, StanfordCars, Flower102, Food101, SUN397 or tiered-ImageNet."
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the extracted data set.")],
    lists: Annotated[Path, typer.Option(help="Folder with the paper's three split lists.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    sha256: Annotated[
        str | None, typer.Option(help="Expected SHA-256 of the three concatenated lists.")
    ] = None,
    download: Annotated[
        bool, typer.Option(help="Download with torchvision, if it supports the data set.")
    ] = False,
    copy: Annotated[bool, typer.Option(help="Copy the images instead of linking them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Arrange one of the paper's data sets into train/, val_on_train/ and val/."""
    from distill.data.preparation import paper_data_sets

    if download:
        paper_data_sets.download(name, root)
    with bars() as bar:
        result = paper_data_sets.prepare(
            name, root, lists, out, sha256=sha256, copy=copy, progress=bar("Images")
        )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    for split, images in result.images.items():
        classes = counted(result.classes[split], "class")
        notes.print(f"{split}: {counted(images, 'image')} of {classes}")
    notes.print(f"written to {out}; SHA-256 of the lists: {result.lists_sha256}", soft_wrap=True)


@app.command()
@one_line_errors
def split(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="Folder to create, or a .csv or .jsonl file.")],
    validation: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Fraction of each class for validation.")
    ] = 0.2,
    unseen: Annotated[
        str, typer.Option(help="Classes to hold out as unseen: a number, or KEY,KEY,….")
    ] = "0",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="With a number: hold out the classes whose names are least similar to the others "
            "for this teacher, instead of random classes."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    copy: Annotated[bool, typer.Option(help="Copy the images instead of linking them.")] = False,
    cache: CacheOption = CACHE,
) -> None:
    """Divide images into train, validation and unseen classes; near-duplicates stay together.

    Objects cropped from the same photo also stay together. Splits of the source are ignored.
    """
    from distill.data.preparation import split
    from distill.data.preparation.duplicates import Fingerprint, fingerprints, near_duplicates
    from distill.data.sources.find import find_source
    from distill.data.splits import in_order
    from distill.errors import UnreadableImages

    images = sorted(_images_of(find_source(source), cache), key=in_order)
    keys = sorted({image.key for image in images})
    split.check_out(out, source, keys)
    if teacher is not None:
        unseen = ",".join(_least_alike(keys, unseen, teacher))
    chosen = split.choose_unseen(keys, unseen, seed)
    with bars() as bar:
        results = fingerprints([image.path for image in images], bar("Comparing images"))
        if errors := [x for x in results if not isinstance(x, Fingerprint)]:
            raise UnreadableImages([name for error in errors for name in error.images])
        groups = near_duplicates([x.perceptual for x in results if isinstance(x, Fingerprint)])
        together = split.with_crops_of_one_photo(groups, images)
        division, left_out = split.divide(
            images, together, validation=validation, unseen=chosen, seed=seed
        )
        if out.suffix.lower() in split.MANIFESTS:
            split.write_manifest(out, division, cache)
        else:
            split.write_folders(out, division, cache, copy=copy, progress=bar("Images"))
    for name, split_images in division.items():
        classes = counted(len({image.key for image in split_images}), "class")
        notes.print(f"{name}: {counted(len(split_images), 'image')} of {classes}")
    if chosen:
        notes.print(f"unseen classes: {', '.join(sorted(chosen))}", soft_wrap=True, markup=False)
    if groups:
        notes.print(
            f"{sum(map(len, groups))} near-duplicates in {counted(len(groups), 'group')}, each in "
            "one split"
        )
    if left_out:
        notes.print(
            f"{counted(len(left_out), 'image')} left out: near-duplicates of an image of an unseen "
            "class, or cropped from the same photo",
            soft_wrap=True,
        )
    notes.print(f"written to {out}", markup=False, soft_wrap=True)


def _images_of(source: "Source", cache: Path) -> "list[LabelledImage]":
    """The images of `source`. Shows the progress of a source that has to be unpacked."""
    with bars() as bar:
        return list(source.images(cache, bar("Finding images")))


def _least_alike(keys: "Sequence[str]", number: str, teacher: str) -> "list[str]":
    """The `number` classes whose names have the smallest cosine with the nearest other name."""
    from distill.embeddings.text_bank import encode_groups
    from distill.models.teacher import load_teacher

    if not number.isdecimal() or not 0 < int(number) < len(keys):
        raise UserError(
            f"--teacher chooses the unseen classes: give their number (1 to {len(keys) - 1}) with "
            "--unseen"
        )
    names = [f"a photo of {key.replace('_', ' ')}" for key in keys]
    text = encode_groups(load_teacher(teacher), [((name,), "") for name in names])
    nearest = (text @ text.T).fill_diagonal_(-1).max(dim=1).values
    return [keys[index] for index in nearest.argsort()[: int(number)].tolist()]


@app.command()
@one_line_errors
def check(
    source: SourceArgument,
    sheet: Annotated[
        Path | None, typer.Option(help="Contact sheet to write, .html or .png.")
    ] = None,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Counts, class sizes, duplicates, unreadable and skipped files of a data set."""
    from distill.data.preparation.check import check_data
    from distill.data.sources.find import find_source
    from distill.data.splits import assign_splits

    if sheet is not None and sheet.suffix not in (".html", ".png"):
        raise UserError(f"--sheet {sheet} has an unknown suffix: choose .html or .png")
    data_source = find_source(source)
    splits = assign_splits(_images_of(data_source, cache))
    with bars() as bar:
        checked = check_data(data_source, splits, bar("Reading images"))
        if sheet is not None:
            _write_sheet(source, splits, sheet)
    if as_json:
        print(checked.model_dump_json())  # noqa: T201
    else:
        print("\n".join(describe(checked)))  # noqa: T201
    if sheet is not None:
        notes.print(f"contact sheet: {sheet}", markup=False, soft_wrap=True)


def describe(checked: "DataCheck") -> list[str]:
    """The findings as lines of text."""
    lines = [
        f"{name}: {counted(split.images, 'image')} of {counted(split.classes, 'class')}, "
        f"{split.fewest} "
        f"({split.smallest_class}) to {split.most} ({split.largest_class}) a class"
        for name, split in checked.splits.items()
    ]
    if checked.shorter_side:
        least, median, most = checked.shorter_side
        lines.append(f"shorter side: {least} to {most} px, median {median}")
    if checked.small:
        lines.append(f"smaller than 32 px: {checked.small}")
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in checked.skipped.items())
    lines.append(f"skipped files: {skipped or 'none'}")
    if checked.skipped_boxes is not None:
        boxes = ", ".join(f"{count} {reason}" for reason, count in checked.skipped_boxes.items())
        lines.append(f"skipped boxes: {boxes or 'none'}")
    lines.append(f"unreadable images: {len(checked.unreadable) or 'none'}")
    lines += [f"  {name}" for name in checked.unreadable[:LISTED]]
    lines += _described("duplicates and near-duplicates", checked.duplicates)
    lines += _described("of these in several splits", checked.leaks)
    lines += _described("of these with several labels", checked.label_conflicts)
    return lines


def _described(title: str, groups: "Sequence[Duplicates]") -> list[str]:
    lines = [f"{title}: {counted(len(groups), 'group') if groups else 'none'}"]
    lines += [
        f"  {'same' if group.same_bytes else 'near'}: {some(group.images, 4, quote=False)}"
        for group in groups[:LISTED]
    ]
    return lines + ([f"  and {len(groups) - LISTED} more"] if len(groups) > LISTED else [])


def _write_sheet(
    title: str, splits: "Mapping[SplitName, Sequence[LabelledImage]]", sheet: Path
) -> None:
    """Write an HTML page or a PNG with some images of each class."""
    from distill.data.files.image_file import open_image
    from distill.errors import UnreadableImages
    from distill.runtime.contact_sheet import Tile, contact_sheet, contact_sheet_png, thumbnail

    by_class: dict[str, list[ImagePath]] = {}
    for split_name, images in splits.items():
        for image in images:
            by_class.setdefault(f"{split_name}: {image.key}", []).append(image.path)
    if len(by_class) > SHEET_CLASSES:
        notes.print(f"the sheet shows the first {SHEET_CLASSES} of {len(by_class)} classes")
    tiles = []
    for name, paths in list(by_class.items())[:SHEET_CLASSES]:
        step = -(-len(paths) // SHEET_IMAGES)
        for path in paths[::step]:
            try:
                tiles.append(Tile(name, thumbnail(open_image(path))))
            except UnreadableImages:
                continue  # listed in the findings
    try:
        if sheet.suffix == ".png":
            sheet.write_bytes(contact_sheet_png(tiles, SHEET_IMAGES))
        else:
            sheet.write_text(contact_sheet(title, tiles), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write {sheet} ({error.strerror}): choose another --sheet"
        ) from None
