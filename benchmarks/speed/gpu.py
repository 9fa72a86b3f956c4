"""Teacher features and training on a GPU, compared with plain loops and the networks alone.

All rows are measured sequentially in one run, on generated photos:

- features of ViT-L-14 with random weights: ours, a plain open_clip loop in the same precision, and
  the same model on crops that are already on the device
- students at 224 px: our training loop, a plain loop, and the network alone
- M_neigh of 100,000 images

The goal is at least twice the rate of the plain loop and 90 % of the network alone. Takes at most
8 minutes. Without a GPU, it only prints a message.

    python -m benchmarks.speed.gpu [--images 4096]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from contract import LossWeights, TrainConfig
from distill.data.cores import usable_cores
from distill.data.pixels import load_pixels
from distill.data.splits import Split
from distill.embeddings.image_features import GPU_BATCH, decoded_crops, image_features
from distill.method.metrics import m_neigh
from distill.method.objective import Features, LossBalance, compute_losses
from distill.models.devices import describe_device, student_dtype, teacher_dtype
from distill.models.student import build_student
from distill.models.teacher import Teacher
from distill.training.loop import Callbacks, TrainingData, make_objective, train

DIM, CLASSES = 768, 100
NEIGHBOUR_IMAGES: Final = 100_000
SECONDS: Final = 15.0  # of a loop without files
LIMIT_S: Final = 8 * 60


@dataclass(frozen=True)
class Rates:
    """Images per second of the three variants, and of decoding alone."""

    ours: float
    plain: float
    network: float
    decoding: float | None = None


def write_photos(folder: Path, count: int) -> Split:
    """JPEG files of 500 × 375 pixels with the detail of photos, as a split."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    keys = tuple(str(number) for number in range(CLASSES))
    return Split("train", keys, tuple(paths), torch.arange(count) % CLASSES)


class Photos(Dataset[tuple[Tensor, int]]):
    """One photo at a time, transformed, and its number."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.split.paths[index]) as image:
            return self.transform(image.convert("RGB")), index


def loader(split: Split, transform: Callable[[Image.Image], Tensor], batch: int) -> DataLoader:  # type: ignore[type-arg]
    """A typical DataLoader."""
    workers = min(8, usable_cores())
    return DataLoader(
        Photos(split, transform), batch, shuffle=True, num_workers=workers,
        pin_memory=torch.cuda.is_available(), drop_last=len(split) > batch,
        multiprocessing_context="fork",
    )  # fmt: skip


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(device: torch.device, batch: int, step: Callable[[], object], seconds: float) -> float:
    """Images per second of a step that needs no files, after a few steps to warm up."""
    for _ in range(3):
        step()
    synchronize(device)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(5):
            step()
        synchronize(device)
        steps += 5
    return steps * batch / (time.perf_counter() - began)


def random_teacher(name: str, device: torch.device) -> Teacher:
    """A teacher with random weights: only its speed counts."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
    model.eval().requires_grad_(False)
    size = model.visual.image_size
    return Teacher(
        name, model.to(memory_format=torch.channels_last), open_clip.get_tokenizer(name),
        preprocess, size if isinstance(size, int) else size[0], model.context_length, DIM,
        device, teacher_dtype(device),
    )  # fmt: skip


def teacher_rates(teacher: Teacher, split: Split, batch: int, seconds: float) -> Rates:
    """Rates of encoding the photos of `split`."""
    device, count = teacher.device, len(split)
    reduced = teacher.dtype is not torch.float32

    @torch.inference_mode()
    def plain() -> None:
        for images, _ in loader(split, teacher.preprocess, 64):
            with torch.autocast(device.type, teacher.dtype, enabled=reduced):
                teacher.model.encode_image(images.to(device), normalize=True).float().cpu()  # type: ignore[operator]

    def seconds_of(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - began

    batches = [split.paths[start : start + 64] for start in range(0, count, 64)]
    crops = torch.randint(
        0, 256, (batch, 3, teacher.image_size, teacher.image_size), dtype=torch.uint8, device=device
    )
    network = rate(device, batch, lambda: teacher.encode_crops(crops), seconds)
    return Rates(
        ours=count / seconds_of(lambda: image_features(teacher, split, cache=None)),
        plain=count / seconds_of(plain),
        network=network,
        decoding=count / seconds_of(lambda: list(decoded_crops(teacher, batches))),
    )


def student_rates(
    name: str,
    split: Split,
    cache: Path,
    device: torch.device,
    *,
    size: int,
    batch: int,
    seconds: float,
) -> Rates:
    """Rates of training the student `name` on the photos of `split`."""
    losses = LossWeights()
    config = TrainConfig(
        data="photos", teacher="random", student=name, image_size=size, batch_size=batch, epochs=3,
        optimiser="adamw", learning_rate=1e-3, losses=losses, device=str(device),
    )  # fmt: skip
    text = nn.functional.normalize(torch.randn(CLASSES, DIM), dim=1)
    features = nn.functional.normalize(torch.randn(len(split), DIM), dim=1)
    pixels = torch.from_numpy(load_pixels(split, size, cache))
    few = slice(0, 64)
    data = TrainingData(
        pixels, split.targets, features, text, pixels[few], split.targets[few], text
    )
    epochs = train(config, build_student(name, DIM, image_size=size), data, callbacks=Callbacks())
    steps = plain_steps(config, split, features, text, device)
    next(steps)  # starts the processes
    synchronize(device)
    began, done = time.perf_counter(), 0
    for images in steps:
        done += images
        if time.perf_counter() - began > seconds:
            break
    plain = done / (time.perf_counter() - began)
    images = torch.rand(batch, 3, size, size, device=device)
    targets = torch.randint(0, CLASSES, (batch,), device=device)
    step = training_step(config, text.to(device), device)
    teacher = features[:batch].to(device)
    network = rate(device, batch, lambda: step(images, teacher, targets), seconds)
    return Rates(ours=epochs[-1].images_per_second, plain=plain, network=network)


def training_step(
    config: TrainConfig, text: Tensor, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A step of a student with the losses of `config`, from (images, features, targets)."""
    student = build_student(config.student, DIM, image_size=config.image_size).to(device).train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    objective = make_objective(config)
    balance = LossBalance(objective).to(device)
    dtype = student_dtype(device)

    def step(images: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            output = student(images)
        loss = balance(compute_losses(
            Features(output.float(), teacher, text, targets, None), objective))  # fmt: skip
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def plain_steps(
    config: TrainConfig, split: Split, features: Tensor, text: Tensor, device: torch.device
) -> Iterator[int]:
    """Steps of a plain loop over files, in the same precision; yields the images of each."""
    step = training_step(config, text.to(device), device)
    views = transforms.Compose([
        transforms.RandomResizedCrop(config.image_size, scale=(0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.3, contrast=0.3),
        transforms.ToTensor(),
    ])  # fmt: skip
    while True:
        for images, index in loader(split, views, config.batch_size):
            loss = step(
                images.to(device), features[index].to(device), split.targets[index].to(device)
            )
            loss.item()
            yield len(images)


def neighbour_seconds(device: torch.device, images: int) -> float:
    """Seconds of M_neigh(10) between random features."""
    student, teacher = (torch.randn(images, 512, device=device) for _ in range(2))
    began = time.perf_counter()
    m_neigh(student, teacher, 10)
    return time.perf_counter() - began


def show(rows: dict[str, Rates], title: str) -> None:
    table = Table(
        "", "ours, images/s", "plain loop", "network alone", "ours / plain", "ours / network",
        "decoding alone", title=title,
    )  # fmt: skip
    for name, each in rows.items():
        table.add_row(
            name, f"{each.ours:,.0f}", f"{each.plain:,.0f}", f"{each.network:,.0f}",
            f"{each.ours / each.plain:.2f}", f"{100 * each.ours / each.network:.0f} %",
            "" if each.decoding is None else f"{each.decoding:,.0f}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4096)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: skipped, PyTorch finds no CUDA GPU here")
        return
    device, began = torch.device("cuda"), time.perf_counter()
    title = f"{describe_device(device)}, {os.cpu_count()} cores, {student_dtype(device)}"
    with tempfile.TemporaryDirectory() as folder:
        split = write_photos(Path(folder), options.images)
        rows = {
            "ViT-L-14": teacher_rates(random_teacher("ViT-L-14", device), split, GPU_BATCH, SECONDS)
        }
        for name in ("resnet50", "vit_small_patch16_224"):
            if time.perf_counter() - began > LIMIT_S - 120:
                print(f"{name}: left out, {LIMIT_S // 60} minutes are nearly over")
                continue
            rows[name] = student_rates(
                name, split, Path(folder), device, size=224, batch=128, seconds=SECONDS
            )
    show(rows, title)
    seconds = neighbour_seconds(device, NEIGHBOUR_IMAGES)
    print(f"M_neigh of {NEIGHBOUR_IMAGES:,} images of 512 dimensions: {seconds:.1f} s")
    print(f"all of it: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
