"""Time until a student reaches a target accuracy, with AdamW, SGD and Muon on this machine.

Each optimiser trains the same student on the same photos in its own process, until top-1 is 40 % on
seen classes and 13 % on unseen classes, or its schedule ends. Prints seconds, CPU seconds (which
depend little on other processes of the machine) and photos. Each optimiser uses its default
learning rate and its own cosine schedule.

    python -m benchmarks.quality.time_to_quality [--epochs 12]
    python -m benchmarks.quality.time_to_quality --cpu-minutes 10

With the second command, each schedule has as many whole epochs as its optimiser computes in that
CPU time, to compare the accuracies after equal time if there is no time to reach the target.
Trainings are stored in --out and continued.
"""

import argparse
import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from contract import Epoch, TrainConfig
from distill.data.pixels import load_pixels
from distill.data.releases import release_from_pairs
from distill.data.splits import scan_splits
from distill.embeddings.image_features import image_features
from distill.embeddings.text_bank import build_text_bank
from distill.evaluation.accuracy import predict
from distill.models.devices import describe_device, dtype_name, student_dtype
from distill.models.student import Student, build_student
from distill.models.teacher import load_teacher
from distill.training.checkpoint import Checkpoint
from distill.training.loop import Callbacks, TrainingData, train
from distill.training.malloc_tuning import keep_freed_memory

GOALS = {"seen": 40.0, "unseen": 13.0}  # top-1 in percent
OPTIMISERS = ("adamw", "sgd", "muon")
EVALUATED = 600  # photos of each split while it trains; all of them at the end
CALIBRATION = 6  # steps, to estimate the length of a schedule


class GoalReached(Exception):
    """The student has reached the target; ends `train`."""


@dataclass(frozen=True)
class Task:
    """Photos, teacher features and texts; of seen and unseen: pixels, targets, texts."""

    data: TrainingData  # its seen photos are those that are classified while it trains
    seen: tuple[Tensor, Tensor, Tensor]
    unseen: tuple[Tensor, Tensor, Tensor]
    dim: int


class Clock:
    """Time spent in training steps, without evaluations."""

    def __init__(self, file: Path | None = None) -> None:
        """Continue from what `save` wrote to `file`, if it exists."""
        kept = json.loads(file.read_text()) if file and file.is_file() else {}
        self.total = {"seconds": 0.0, "cpu_seconds": 0.0, "photos": 0} | kept

    def start(self) -> None:
        """Begin a step."""
        self._mark = time.perf_counter(), time.process_time()

    def add(self, photos: int) -> None:
        """Count the step since `start` or the last one."""
        began = self._mark
        self.start()
        self.total["seconds"] += self._mark[0] - began[0]
        self.total["cpu_seconds"] += self._mark[1] - began[1]
        self.total["photos"] += photos

    def save(self, file: Path) -> None:
        """Keep the totals for a continuation."""
        file.write_text(json.dumps(self.total))


@dataclass(frozen=True)
class TimedCheckpoint(Checkpoint):
    """A checkpoint that also stores the clock, in a separate file."""

    clock: Clock

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """As of a checkpoint."""
        super().save(tensors, counters)
        self.clock.save(self.path.with_suffix(".clock"))


def load_task(size: int, cache: Path) -> Task:
    """Read photos and texts; the teacher's features are computed once."""
    splits = scan_splits(DATA, cache=cache)
    teacher = load_teacher(TEACHER)
    release = release_from_pairs(DATA / "label2text.txt", DATA / "chatgpt.txt")
    pixels = {
        name: torch.from_numpy(load_pixels(split, size, cache)) for name, split in splits.items()
    }
    text = {
        name: build_text_bank(
            teacher, release, "name+description", keys=split.keys, cache=cache
        ).features
        for name, split in splits.items()
    }
    seen, unseen = ((pixels[name], splits[name].targets, text[name]) for name in ("seen", "unseen"))
    some = sample(seen)
    data = TrainingData(
        pixels=pixels["train"],
        targets=splits["train"].targets,
        teacher=image_features(teacher, splits["train"], cache=cache, normalize=False),
        text=text["train"],
        seen_pixels=some[0],
        seen_targets=some[1],
        seen_text=some[2],
    )
    return Task(data, seen, unseen, teacher.dim)


def sample(split: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A fixed random sample of the photos of a split."""
    pixels, targets, text = split
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    chosen = order[:EVALUATED].sort().values
    return pixels[chosen], targets[chosen], text


def top1(student: Student, split: tuple[Tensor, Tensor, Tensor]) -> float:
    """Accuracy in percent."""
    pixels, targets, text = split
    hits = predict(student.encode(pixels, student.single_view), text) == targets
    return 100 * hits.double().mean().item()


def config_of(optimiser: str, options: argparse.Namespace, epochs: int) -> TrainConfig:
    """The configuration of a schedule of so many epochs."""
    return TrainConfig(
        data=str(DATA),
        teacher=TEACHER,
        student=options.student,
        image_size=options.size,
        optimiser=optimiser,
        epochs=epochs,
        warmup_epochs=min(1.0, epochs / 10),  # else a schedule of one epoch would be all warm-up
        seed=options.seed,
        export=False,
    )


def cpu_seconds_per_photo(optimiser: str, options: argparse.Namespace, task: Task) -> float:
    """Measured over the first steps of a schedule, without the first."""
    config, clock = config_of(optimiser, options, 1), Clock()

    def on_step(done: int, _total: int) -> None:
        if done > 1:
            clock.add(config.batch_size)
        if done > CALIBRATION:
            raise GoalReached
        clock.start()

    student = build_student(config.student, task.dim, image_size=options.size)
    with suppress(GoalReached):
        train(config, student, task.data, callbacks=Callbacks(on_step=on_step))
    return clock.total["cpu_seconds"] / clock.total["photos"]


def measure(optimiser: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one optimiser, or continue; the result is stored in a file."""
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    length = f"{options.cpu_minutes}min" if options.cpu_minutes else f"{options.epochs}epochs"
    path = (
        options.out / f"{options.student}-{options.size}-{length}-{optimiser}-{options.seed}.json"
    )
    result = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    if "final" in result:
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    task = load_task(options.size, options.cache)
    if "epochs" not in result:
        result["epochs"] = options.epochs
        if options.cpu_minutes:
            epoch = cpu_seconds_per_photo(optimiser, options, task) * len(task.data.pixels)
            result["epochs"] = max(1, round(60 * options.cpu_minutes / epoch))
        path.write_text(json.dumps(result))
    config = config_of(optimiser, options, result["epochs"])
    torch.manual_seed(config.seed)
    student = build_student(config.student, task.dim, image_size=options.size)
    clock = Clock(path.with_suffix(".clock"))
    some_unseen = sample(task.unseen)

    def on_epoch(epoch: Epoch) -> None:
        row = {**clock.total, "seen": epoch.seen_top1, "unseen": top1(student, some_unseen)}
        result["rows"].append(row)
        path.write_text(json.dumps(result))
        print(f"{optimiser}: {describe(row)}", flush=True)
        if reached(row) and reached(accuracies(student, task)):
            raise GoalReached
        clock.start()

    clock.start()
    with suppress(GoalReached):
        train(
            config,
            student,
            task.data,
            callbacks=Callbacks(
                on_epoch=on_epoch, on_step=lambda _done, _total: clock.add(config.batch_size)
            ),
            checkpoint=TimedCheckpoint(path.with_suffix(".safetensors"), config, "", clock),
        )
    result["final"] = {**clock.total, **accuracies(student, task)}
    path.write_text(json.dumps(result))
    return result


def accuracies(student: Student, task: Task) -> dict[str, float]:
    """Top-1 in percent on all photos of seen and unseen classes."""
    return {"seen": top1(student, task.seen), "unseen": top1(student, task.unseen)}


def reached(accuracies: Mapping[str, float]) -> bool:
    return all(accuracies[name] >= goal for name, goal in GOALS.items())


def describe(row: Mapping[str, float]) -> str:
    return (
        f"{row['photos']:,} photos, {row['cpu_seconds']:.0f} s of CPU time, "
        f"seen {row['seen']:.1f} %, unseen {row['unseen']:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="of 12,000 photos")
    parser.add_argument("--cpu-minutes", type=float, help="of each schedule, in place of --epochs")
    parser.add_argument("--optimiser", nargs="+", choices=OPTIMISERS, default=OPTIMISERS)
    parser.add_argument("--student", default="resnet18", help="any timm model")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one, so that CPU time compares")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "time-to-quality")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    options = parser.parse_args()
    skip_without_photos("time_to_quality")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart:
        outcomes = {
            name: apart.submit(measure, name, options).result() for name in options.optimiser
        }
    device = torch.device("cpu")
    machine = f"{describe_device(device)}, {dtype_name(student_dtype(device))}"
    table = Table(
        "optimiser", "goal", "epochs", "photos", "CPU s", "s", "photos per CPU s",
        "seen %", "unseen %",
        title=f"{options.student}, {options.size} px, {options.threads} threads, {machine}: "
        f"to {GOALS['seen']:.0f} % seen and "
        f"{GOALS['unseen']:.0f} % unseen",
    )  # fmt: skip
    for name, result in outcomes.items():
        last = result["final"]
        table.add_row(
            name, "reached" if reached(last) else "not reached",
            str(result["epochs"]), f"{last['photos']:,}",
            f"{last['cpu_seconds']:.0f}", f"{last['seconds']:.0f}",
            f"{last['photos'] / last['cpu_seconds']:.1f}", f"{last['seen']:.1f}",
            f"{last['unseen']:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
