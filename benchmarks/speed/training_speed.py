"""Training throughput of this project compared with a plain PyTorch loop.

All train the same network at the same size on the same photos with the same losses and teacher
features in memory. The plain loop decodes, crops and flips each image with PIL in two DataLoader
workers and computes in float32, channels first. The variants alternate, and the time of each is
printed by phase. The ratio, a median over rounds, is between the two variants with AdamW; the third
variant uses Muon, the default, whose steps are slower and learn more.

    python -m benchmarks.speed.training_speed [--images 2560] [--rounds 3] [--student resnet18]
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks._photos import DATA, ROOT, skip_without_photos
from contract import TrainConfig
from distill.data.augment import RATIO, SCALE, apply_views, sample_views
from distill.data.files.image_file import open_image
from distill.data.pixels import load_pixels
from distill.data.splits import Split, scan_split
from distill.method import losses
from distill.models.precision import training_precision
from distill.models.student import Student, build_student
from distill.training.malloc_tuning import keep_freed_memory
from distill.training.optimisers import make_optimiser

SIZE, BATCH, DIM = 64, 128, 512
WORKERS = 2
PLAIN = "plain loop"
OURS = {"distill, AdamW": "adamw", "distill, Muon": "muon"}  # by their optimisers


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of a with block."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


class Photos(Dataset[tuple[Tensor, int]]):
    """One photo at a time, as most training scripts read them."""

    def __init__(self, split: Split, mean: Tensor, std: Tensor) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(brightness=0.3, contrast=0.3),
                transforms.ToTensor(),
                transforms.Normalize(mean.flatten().tolist(), std.flatten().tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(open_image(self.split.paths[index])), index


def step_losses(output: Tensor, teacher: Tensor, text: Tensor, targets: Tensor) -> Tensor:
    """All four losses of the paper."""
    return (
        losses.l_cls(output, text, targets)
        + losses.l_mse(output, teacher)
        + losses.l_im_cst(output, teacher)
        + losses.l_vlprox(output, teacher, text, targets)
    )


def plain(split: Split, student: Student, teacher: Tensor, text: Tensor, clock: Clock) -> int:
    """An epoch of the plain loop. Returns the number of images."""
    student = student.to(memory_format=torch.contiguous_format)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    photos = Photos(split, student.mean, student.std)
    loader = DataLoader(
        photos,
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        multiprocessing_context="fork",  # they begin at once, in place of importing torch first
    )
    batches, done = iter(loader), 0
    while True:
        with clock("data"):
            batch = next(batches, None)
        if batch is None:
            return done
        images, index = batch
        with clock("network"):
            output = student.projection(student.backbone(images))
        with clock("losses"):
            loss = step_losses(output, teacher[index], text, split.targets[index])
        with clock("network"):
            loss.backward()
        with clock("optimiser"):
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        done += len(images)


def ours(
    pixels: Tensor,
    split: Split,
    student: Student,
    teacher: Tensor,
    text: Tensor,
    optimiser: torch.optim.Optimizer,
    clock: Clock,
) -> int:
    """An epoch with the steps of `distill.training.loop`. Returns the number of images."""
    order, generator = torch.randperm(len(pixels)), torch.Generator()
    for start in range(0, len(pixels) - BATCH + 1, BATCH):
        with clock("data"):
            batch = order[start : start + BATCH]
            images = apply_views(pixels[batch], sample_views(len(batch), generator))
        with clock("network"), training_precision(torch.device("cpu")):
            output = student(images)
        with clock("losses"):
            loss = step_losses(output.float(), teacher[batch], text, split.targets[batch])
        with clock("network"):
            loss.backward()
        with clock("optimiser"):
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    return len(pixels) // BATCH * BATCH


def epoch(name: str, student_name: str, images: int, cache: Path) -> tuple[float, Counter[str]]:
    """An epoch of one variant. Returns images per second, and seconds by phase."""
    train = scan_split(DATA, "train")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    chosen = chosen[:images].sort().values
    split = Split("train", train.keys, tuple(train.paths[i] for i in chosen), train.targets[chosen])
    # Speed does not depend on the values of the features.
    teacher = nn.functional.normalize(torch.randn(len(split), DIM), dim=1)
    text = nn.functional.normalize(torch.randn(len(split.keys), DIM), dim=1)
    student = build_student(student_name, DIM, image_size=SIZE).train()
    clock = Clock()
    if name == PLAIN:
        began = time.perf_counter()
        done = plain(split, student, teacher, text, clock)
    else:
        keep_freed_memory()
        pixels = torch.from_numpy(load_pixels(split, SIZE, cache))
        config = TrainConfig(data=str(DATA), teacher="", student=student_name, optimiser=OURS[name])
        optimiser = make_optimiser(config, student)
        began = time.perf_counter()
        done = ours(pixels, split, student, teacher, text, optimiser, clock)
    return done / (time.perf_counter() - began), clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560, help="an epoch; 12000 are all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    options = parser.parse_args()
    skip_without_photos("training_speed")
    rates: dict[str, list[float]] = {name: [] for name in (PLAIN, *OURS)}
    parts: dict[str, Counter[str]] = {name: Counter() for name in rates}
    # A process for each epoch, since what it does with freed memory holds for all of it.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart:
        for _ in range(options.rounds):
            for name in rates:
                asked = (name, options.student, options.images, options.cache)
                rate, seconds = apart.submit(epoch, *asked).result()
                rates[name].append(rate)
                parts[name].update(seconds)
    table = Table(
        "", "images/s (median)", "least", "most", "data", "network", "losses", "optimiser",
        title=f"{options.student}, {SIZE} px, batch {BATCH}, {options.images} images, "
        f"{options.rounds} rounds, {torch.get_num_threads()} threads",
    )  # fmt: skip
    for name, seen in rates.items():
        shares = [100 * parts[name][part] / parts[name].total() for part in
                  ("data", "network", "losses", "optimiser")]  # fmt: skip
        table.add_row(
            name, f"{median(seen):.0f}", f"{min(seen):.0f}", f"{max(seen):.0f}",
            *(f"{share:.1f} %" for share in shares),
        )  # fmt: skip
    Console().print(table)
    # Within a round, since the speed of a machine with neighbours drifts from one to the next.
    turns = zip(rates["distill, AdamW"], rates[PLAIN], strict=True)
    ratios = [rate / other for rate, other in turns]
    print(
        f"ratio, both with AdamW: {median(ratios):.2f}; of each round",
        *(f"{r:.2f}" for r in ratios),
    )


if __name__ == "__main__":
    main()
