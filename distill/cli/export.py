"""`distill export`: writes a finished run as a classifier folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill.cli.console import CACHE, CacheOption, JsonOption, bars, notes, one_line_errors
from distill.errors import TextError
from distill.export import Format

if TYPE_CHECKING:
    from distill.runtime.manifest import Manifest


def look_alikes_given(given: str | None, run: Path) -> tuple[str, ...]:
    """The names in --look-alikes, except those of classes of the release in the folder `run`.

    Raises:
        DataError: `run` is not the folder of a finished training.
        TextError: the file cannot be read, or no name is left.
    """
    from distill.data.releases import read_release
    from distill.embeddings.look_alikes import look_alikes_of, read_look_alikes
    from distill.evaluation.report.training_report import read_report
    from distill.export.finished_run import RELEASE_FILE

    if given is None:
        return ()
    read_report(run)
    release = read_release(run / RELEASE_FILE)
    if given != "release":
        return read_look_alikes(Path(given), (label.name for label in release.labels))
    if names := look_alikes_of(release):
        return names
    raise TextError(
        f"the release {release.name!r} has no look-alikes: run the prompt look-alikes and release "
        "again, or give a file"
    )


def print_unknown_scores(manifest: "Manifest") -> None:
    """Print how well the scores detect unknown images, with and without look-alikes."""
    calibration = manifest.calibration
    count = len(manifest.look_alikes)
    if not calibration.unknown_scores:
        notes.print(f"{count} look-alikes, not evaluated: there are no unseen images")
        return
    table = Table("score for unknown images", "AUROC", "FPR at 95 % TPR")
    for row in calibration.unknown_scores:
        table.add_row(row.score, f"{row.auroc:.3f}", f"{row.fpr_at_95_tpr:.1f}")
    Console().print(table)
    notes.print(
        f"{count} look-alikes reject {calibration.look_alikes_reject_seen:.1f} % of seen and "
        f"{calibration.look_alikes_reject_unseen:.1f} % of unseen images; a cosine threshold that "
        f"rejects as many seen ones rejects {calibration.threshold_rejects_unseen:.1f} % of unseen "
        "ones"
    )


@one_line_errors
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training run.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Classifier folder to write. An old one is replaced, unless classes were added."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Images of the run, if they have moved since training.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher of the run, if it has moved since training.")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Format besides ONNX, which is always written (repeatable)."),
    ] = None,
    resize_inside: Annotated[
        bool,
        typer.Option("--resize-inside", help="Resize photos inside the ONNX encoder."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write an int8 encoder; used if it is faster.")
    ] = False,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Percentage points of top-1 that --int8 may lose.")
    ] = 1.0,
    bake: Annotated[
        bool,
        typer.Option(
            "--bake", help="Also write classifier.onnx: pixels to probabilities, fixed classes."
        ),
    ] = False,
    look_alikes: Annotated[
        str | None,
        typer.Option(
            help="Also reject images that are more similar to one of these names than to any "
            'class: a file with one name per line, or "release" for those of the release.'
        ),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="open_clip model to compare with (repeatable): NAME@TAG, hf-hub:…, local-dir:…"
        ),
    ] = None,
    open_clip: Annotated[
        bool,
        typer.Option("--open-clip", help="Also write open_clip/, which open_clip and timm load."),
    ] = False,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Export a run as a classifier folder that runs without torch, verified against PyTorch."""
    from distill.export.classifier_folder import ExportOptions, export_run
    from distill.export.finished_run import load_run

    names = look_alikes_given(look_alikes, run)  # reports errors before the slow part
    with bars() as bar:
        finished = load_run(run, data=data, teacher=teacher, cache=cache, bar=bar)
        options = ExportOptions(
            formats=tuple(formats or ()),
            resize_inside=resize_inside,
            int8=int8,
            max_drop=max_drop,
            bake=bake,
            rivals=tuple(rival or ()),
            open_clip=open_clip,
            look_alikes=names,
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
        f"images; image features differ by at most {exported.feature_difference:.0e}, text "
        f"features by {1 - exported.text_cosine:.0e} in cosine"
    )
    if look_alikes is not None:
        print_unknown_scores(exported.manifest)
    for remark in exported.remarks:
        notes.print(remark, markup=False)
    notes.print(f"classifier: {out}", markup=False)
