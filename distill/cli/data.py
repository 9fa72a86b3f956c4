"""`distill data prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import JsonOption, bars, notes, one_line_errors

app = typer.Typer(no_args_is_help=True, help="Data sets in the layout that training reads.")


@app.command()
@one_line_errors
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="CaltechBirds, StanfordCars, Flower102, Food101, SUN397 or tiered-ImageNet."
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the unpacked data set.")],
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
    from distill.data import prepare as prepare_module

    if download:
        prepare_module.download(name, root)
    with bars() as bar:
        result = prepare_module.prepare(
            name, root, lists, out, sha256=sha256, copy=copy, progress=bar("Images")
        )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    for split, images in result.images.items():
        notes.print(f"{split}: {images} images of {result.classes[split]} classes")
    notes.print(f"{out}, by lists with the SHA-256 {result.lists_sha256}", soft_wrap=True)
