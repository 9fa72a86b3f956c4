"""Training on streamed pixels: memory, time to the first step, throughput against cached pixels.

Photos of 64 px are generated as JPEG files in class folders, stored in --folder and reused. The
teacher's features are random, since only speed matters; everything else is the real training loop.

- memory: training on all photos, for an epoch or --seconds, in a separate process. The peak is the
  largest resident set, including the memory-mapped features, all of which have been read.
- first step: from the start of the scan of the folder to the end of the first step.
- rate: an epoch with streamed and with cached pixels on some of the photos, in alternation.

    python -m benchmarks.speed.streaming [--images 200000] [--student resnet18] [--rounds 3]
"""

import argparse
import io
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from benchmarks._photos import ROOT
from contract import TrainConfig
from distill.data.files.tensor_file import read_tensor, write_rows
from distill.data.pixels import open_pixels
from distill.data.splits import Split, scan_splits
from distill.errors import Interrupted
from distill.models.student import build_student
from distill.training.loop import Callbacks, TrainingData, train
from distill.training.malloc_tuning import keep_freed_memory

SIZE, DIM, CLASSES = 64, 512, 100
SEEN = 10  # validation images of each class
PICTURES = 1000  # different ones; the files repeat them
Mode = Literal["cached", "streamed"]
MODES: tuple[Mode, ...] = ("cached", "streamed")


@dataclass(frozen=True)
class Measured:
    """A training on streamed pixels."""

    images: int  # that were trained on
    images_per_second: float
    first_step_s: float  # from the start of the scan of the folder
    scan_s: float
    peak_bytes: int  # of the resident set


def write_photos(folder: Path, images: int) -> Path:
    """Write a folder with `images` photos in train/ and others in val_on_train/, if missing."""
    target = folder / f"photos-{images}"
    if target.is_dir():
        return target
    partial = folder / f"photos-{images}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pictures = [_picture(np.random.default_rng(number)) for number in range(PICTURES)]
    for split, count in (("train", images), ("val_on_train", SEEN * CLASSES)):
        for key in range(CLASSES):
            (partial / split / f"class{key:03}").mkdir(parents=True)
        for number in range(count):
            path = partial / split / f"class{number % CLASSES:03}" / f"{number:07}.jpg"
            path.write_bytes(pictures[number % PICTURES])
    return partial.rename(target)


def _picture(rng: np.random.Generator) -> bytes:
    """Coloured blobs with noise, as a JPEG of about the size of a real photo."""
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = blobs.resize((SIZE, SIZE), Image.Resampling.BICUBIC).filter(ImageFilter.SHARPEN)
    pixels = np.asarray(smooth, dtype=np.float32) + rng.normal(0, 12, (SIZE, SIZE, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return content.getvalue()


def write_features(folder: Path, images: int) -> Path:
    """Random features of the photos, as a file that is read memory-mapped."""
    path = folder / f"features-{images}.safetensors"
    if not path.is_file():
        generator = torch.Generator().manual_seed(0)
        parts = torch.split(torch.arange(images), 10_000)
        rows = (torch.randn(len(part), DIM, generator=generator) for part in parts)
        write_rows(path, rows, (images, DIM))
    return path


def load_splits(photos: Path, images: int) -> tuple[Split, Split]:
    """`images` evenly spaced training photos, and the validation photos."""
    splits = scan_splits(photos)
    train = splits["train"]
    rows = torch.linspace(0, len(train) - 1, images, dtype=torch.float64).long()
    paths = tuple(train.paths[row] for row in rows.tolist())
    return Split("train", train.keys, paths, train.targets[rows]), splits["seen"]


def training_data(mode: Mode, train: Split, seen: Split, features: Path) -> TrainingData:
    """The photos with random features of teacher and texts."""
    text = normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    cache = features.parent / "cache"
    return TrainingData(
        pixels=open_pixels(train, SIZE, cache, mode),
        targets=train.targets,
        teacher=read_tensor(features)[0][: len(train)],
        text=text,
        seen_pixels=open_pixels(seen, SIZE, cache, mode),
        seen_targets=seen.targets,
        seen_text=text,
    )


def train_student(name: str, data: TrainingData, callbacks: Callbacks) -> float:
    """Train a new student for an epoch. Returns images per second."""
    config = TrainConfig(data="photos", teacher="random", student=name, image_size=SIZE, epochs=1)
    torch.manual_seed(0)
    (epoch,) = train(config, build_student(name, DIM, image_size=SIZE), data, callbacks=callbacks)
    return epoch.images_per_second


def measure_memory(
    photos: Path, features: Path, student: str, images: int, limit: float
) -> Measured:
    """Train on streamed pixels, for at most `limit` seconds."""
    keep_freed_memory()
    began = time.perf_counter()
    splits = load_splits(photos, images)
    scan_s = time.perf_counter() - began
    ends: list[float] = []
    callbacks = Callbacks(
        on_step=lambda *_: ends.append(time.perf_counter()),
        should_stop=lambda: ends[-1] - ends[0] > limit,
    )
    with suppress(Interrupted):
        train_student(student, training_data("streamed", *splits, features), callbacks)
    steps = len(ends) - 1
    batch = TrainConfig.model_fields["batch_size"].default
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = steps * batch / max(ends[-1] - ends[0], 1e-9)
    return Measured(len(ends) * batch, rate, ends[0] - began, scan_s, peak)


def measure_rates(
    photos: Path, features: Path, student: str, images: int, rounds: int
) -> dict[Mode, list[float]]:
    """Images per second of streamed and cached pixels, in alternation."""
    keep_freed_memory()
    splits = load_splits(photos, images)
    sides: dict[Mode, TrainingData] = {
        mode: training_data(mode, *splits, features) for mode in MODES
    }
    rates: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode, data in sides.items():
            rates[mode].append(train_student(student, data, Callbacks()))
    return rates


def show_rates(rates: dict[Mode, list[float]], title: str) -> None:
    """Print a table of both, and the ratio within each round."""
    table = Table("", "images/s (median)", "least", "most", title=title)
    for mode, speeds in rates.items():
        table.add_row(
            mode, f"{median(speeds):.0f}", f"{min(speeds):.0f}", f"{max(speeds):.0f}"
        )  # fmt: skip
    Console().print(table)
    # Within a round, since the speed of a machine with neighbours drifts from one to the next.
    turns = zip(rates["streamed"], rates["cached"], strict=True)
    ratios = [100 * streamed / cached for streamed, cached in turns]
    shown = " ".join(f"{ratio:.0f}" for ratio in ratios)
    print(f"streamed by cached: {median(ratios):.0f} %; of each round {shown}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000, help="for the memory")
    parser.add_argument("--seconds", type=float, default=inf, help="of training, for the memory")
    parser.add_argument("--memory-student", default="test_resnet", help="a small one")
    parser.add_argument("--rate-images", type=int, default=2560, help="for the rate")
    parser.add_argument("--student", default="resnet18", help="for the rate")
    parser.add_argument("--rounds", type=int, default=3, help="for the rate; 0 leaves it out")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench-out" / "streaming")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    photos = write_photos(options.folder, options.images)
    features = write_features(options.folder, options.images)
    print(
        f"{options.images:,} photos of {SIZE} px in {time.perf_counter() - began:.0f} s: {photos}",
        flush=True,
    )
    # A process for each: its peak is its own, and so is what it does with freed memory.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart:
        arguments = (photos, features, options.memory_student, options.images, options.seconds)
        run = apart.submit(measure_memory, *arguments).result()
        print(
            f"streamed, {options.memory_student}, {run.images:,} of {options.images:,} images: "
            f"peak {run.peak_bytes / 1e9:.2f} GB, {run.images_per_second:.0f} images/s; first step "
            f"after {run.first_step_s:.1f} s, {run.scan_s:.1f} of them for the list of files",
            flush=True,
        )
        if options.rounds:
            few = min(options.rate_images, options.images)
            arguments = (photos, features, options.student, few, options.rounds)
            rates = apart.submit(measure_rates, *arguments).result()
            title = (
                f"{options.student}, {SIZE} px, {few} images, {options.rounds} rounds, "
                f"{torch.get_num_threads()} threads"
            )
            show_rates(rates, title)


if __name__ == "__main__":
    main()
