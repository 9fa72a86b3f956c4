"""`distill export`: a finished run as a classifier folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill.cli.console import CACHE, CacheOption, JsonOption, bars, notes, one_line_errors


@one_line_errors
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training run.")],
    out: Annotated[Path, typer.Option(help="Classifier folder to write; an old one is replaced.")],
    data: Annotated[
        Path | None, typer.Option(help="Where the run's images lie now, if elsewhere.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Where the run's teacher lies now, if elsewhere.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also in 8-bit integers; used where that is quicker.")
    ] = False,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Points of top-1 that --int8 may lose.")
    ] = 1.0,
    bake: Annotated[
        bool,
        typer.Option("--bake", help="Also classifier.onnx: image to probabilities, fixed classes."),
    ] = False,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="open_clip model to compare with: NAME@TAG, hf-hub:…, local-dir:…"),
    ] = None,
    open_clip: Annotated[
        bool,
        typer.Option("--open-clip", help="Also open_clip/: a folder for open_clip and timm."),
    ] = False,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Write a classifier that runs without torch, checked against PyTorch image by image."""
    from distill.export.classifier_folder import ExportOptions, export_run
    from distill.export.finished_run import load_run

    with bars() as bar:
        finished = load_run(run, data=data, teacher=teacher, cache=cache, bar=bar)
        options = ExportOptions(
            int8=int8,
            max_drop=max_drop,
            bake=bake,
            rivals=tuple(rival or ()),
            open_clip=open_clip,
        )
        exported = export_run(
            finished, out, options=options, cache=cache, progress=bar("Exporting")
        )
    if as_json:
        print(exported.manifest.model_dump_json())  # noqa: T201
        return
    table = Table(
        "format", "MB", "ms at batch 1", "images/s at batch 32", "seen top-1 %", "unseen top-1 %"
    )
    for row in exported.rows:
        table.add_row(
            row.name,
            "" if row.megabytes is None else f"{row.megabytes:.1f}",
            f"{row.speed.ms:.1f}",
            f"{row.speed.images_per_second:,.0f}",
            f"{row.seen:.1f}",
            "–" if row.unseen is None else f"{row.unseen:.1f}",
        )
    Console().print(table)
    notes.print(
        f"same classes as PyTorch on {sum(map(len, finished.splits.values())):,} validation "
        f"images; features within {exported.feature_difference:.0e}, texts within "
        f"{1 - exported.text_cosine:.0e} in cosine"
    )
    for remark in exported.remarks:
        notes.print(remark, markup=False)
    notes.print(f"classifier: {out}", markup=False)
