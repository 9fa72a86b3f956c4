"""Training on streamed pixels: its memory, its rate beside that on cached pixels, its first step.

Photos of 64 px are generated as JPEG files in class folders, kept in --folder and used again. The
teacher's features are random, since only speed counts; everything else is the real training loop.

- memory: an epoch on all photos, then the student's features of all of them, in a process of its
  own. The peak is the process's largest resident set, memory-mapped features included.
- first step: from the start of the scan of the folder to the end of the first step.
- rate: an epoch of each side on some of the photos, in turns, each in a process of its own.

    python -m benchmarks.speed.streaming [--images 200000] [--student resnet18] [--rounds 3]
"""

import argparse
import io
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from distill.data.tensor_file import read_tensor, write_rows
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from benchmarks._photos import ROOT
from contract import TrainConfig
from distill.data.pixels import open_pixels
from distill.data.splits import Split, scan_splits
from distill.evaluation.score_norm import ScoreNorm
from distill.models.student import build_student
from distill.training.loop import Callbacks, TrainingData, train
from distill.training.malloc_tuning import keep_freed_memory

SIZE, DIM, CLASSES = 64, 512, 100
SEEN = 10  # validation images of each class
PICTURES = 1000  # different ones; the files repeat them
Mode = Literal["cached", "streamed"]


@dataclass(frozen=True)
class Measured:
    """One training."""

    images_per_second: float
    first_step_s: float  # from the start of the scan of the folder
    scan_s: float
    peak_bytes: int  # of the resident set


def write_photos(folder: Path, images: int) -> Path:
    """A folder train/ with `images` photos and val_on_train/, unless it is there; its path."""
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
    """Coloured blobs with grain, as JPEG: about as many bytes as a photo of this size has."""
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


def measure(mode: Mode, photos: Path, features: Path, student_name: str, images: int) -> Measured:
    """Train for an epoch on `images` of the photos, and encode them; runs in its own process."""
    keep_freed_memory()
    began = time.perf_counter()
    splits = scan_splits(photos)
    whole, seen = splits["train"], splits["seen"]
    rows = torch.linspace(0, len(whole) - 1, images, dtype=torch.float64).long()
    paths = tuple(whole.paths[row] for row in rows.tolist())
    split = Split("train", whole.keys, paths, whole.targets[rows])
    scan_s = time.perf_counter() - began
    text = normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    cache = photos.parent / "cache"
    data = TrainingData(
        pixels=open_pixels(split, SIZE, cache, mode),
        targets=split.targets,
        teacher=read_tensor(features)[0][:images],
        text=text,
        seen_pixels=open_pixels(seen, SIZE, cache, mode),
        seen_targets=seen.targets,
        seen_text=text,
    )
    config = TrainConfig(
        data=str(photos), teacher="random", student=student_name, image_size=SIZE, epochs=1
    )
    torch.manual_seed(0)
    student = build_student(student_name, DIM, image_size=SIZE)
    ends: list[float] = []
    callbacks = Callbacks(on_step=lambda *_: ends.append(time.perf_counter()))
    (epoch,) = train(config, student, data, callbacks=callbacks)
    ScoreNorm.of(student.encode(data.pixels))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(epoch.images_per_second, ends[0] - began, scan_s, peak)


def show_rates(rates: dict[Mode, list[Measured]], title: str) -> float:
    """Print a table of both sides; the median over rounds of streamed by cached."""
    table = Table(
        "", "images/s (median)", "least", "most", "first step, s", "peak, GB", title=title
    )
    for mode, runs in rates.items():
        speeds = [run.images_per_second for run in runs]
        table.add_row(
            mode, f"{median(speeds):.0f}", f"{min(speeds):.0f}", f"{max(speeds):.0f}",
            f"{median(run.first_step_s for run in runs):.1f}",
            f"{max(run.peak_bytes for run in runs) / 1e9:.2f}",
        )  # fmt: skip
    Console().print(table)
    # Within a round, since the speed of a machine with neighbours drifts from one to the next.
    turns = zip(rates["streamed"], rates["cached"], strict=True)
    ratios = [one.images_per_second / other.images_per_second for one, other in turns]
    print(
        f"streamed by cached: {100 * median(ratios):.0f} %; of each round",
        *(f"{100 * ratio:.0f}" for ratio in ratios),
    )
    return median(ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=200_000, help="for the memory; 0 leaves it out"
    )
    parser.add_argument("--memory-student", default="test_resnet", help="a small one")
    parser.add_argument("--rate-images", type=int, default=5120, help="for the rate")
    parser.add_argument("--student", default="resnet18", help="for the rate")
    parser.add_argument("--rounds", type=int, default=3, help="for the rate; 0 leaves it out")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench-out" / "streaming")
    options = parser.parse_args(arguments)
    images = max(options.images, options.rate_images)
    began = time.perf_counter()
    photos = write_photos(options.folder, images)
    features = write_features(options.folder, images)
    print(f"{images:,} photos of {SIZE} px in {time.perf_counter() - began:.0f} s: {photos}")
    # A process for each training: its peak is its own, and so is what it does with freed memory.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart:
        if options.images:
            run = apart.submit(
                measure, "streamed", photos, features, options.memory_student, images
            ).result()
            print(
                f"streamed, {images:,} images, {options.memory_student}: peak "
                f"{run.peak_bytes / 1e9:.2f} GB, {run.images_per_second:.0f} images/s; first step "
                f"after {run.first_step_s:.1f} s, {run.scan_s:.1f} of them for the list of files"
            )
        rates: dict[Mode, list[Measured]] = {"cached": [], "streamed": []}
        # The first round writes the cache, before its first step.
        for mode in ("cached", "streamed") * options.rounds:
            asked = (mode, photos, features, options.student, options.rate_images)
            rates[mode].append(apart.submit(measure, *asked).result())
    if options.rounds:
        title = (
            f"{options.student}, {SIZE} px, {options.rate_images} images, {options.rounds} rounds, "
            f"{torch.get_num_threads()} threads"
        )
        show_rates(rates, title)


if __name__ == "__main__":
    main()
