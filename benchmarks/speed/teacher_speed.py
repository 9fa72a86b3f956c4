"""Teacher features: speed of this project compared with plain open_clip, and their agreement.

Images: one image folder through a DataLoader, float32, batches of 64, against
`distill.embeddings.image_features`. Texts: `open_clip.build_zero_shot_classifier` against
`distill.embeddings.text_bank`, with the same prompts. The two alternate; medians are compared.

    python -m benchmarks.speed.teacher_speed [--images 512] [--classes 100] [--rounds 3]
"""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import TypeVar

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks._photos import DATA, SHARED, TEACHER, skip_without_photos
from contract import Release, ReleaseLabel, release_hash
from distill.data.releases import release_from_pairs
from distill.data.splits import Split, scan_split
from distill.embeddings.image_features import image_features
from distill.embeddings.text_bank import build_text_bank
from distill.models.teacher import Teacher, load_teacher

SENTENCES = (
    "a close view of it on a plain background.",
    "it fills most of the picture.",
    "it is seen from the side in daylight.",
    "a small one, far away, among other things.",
    "a drawing of it with clear outlines.",
    "its colours are bright and its edges sharp.",
    "it is partly hidden behind something else.",
    "a bad picture of it, dark and blurred, taken with an old telephone.",
    "several of them stand beside each other.",
    "it lies on the ground, and people walk past it.",
)
T = TypeVar("T")


class Photos(Dataset[Tensor]):
    """One preprocessed photo at a time."""

    def __init__(self, teacher: Teacher, split: Split) -> None:
        self.teacher, self.split = teacher, split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.split.paths[index]) as image:
            return self.teacher.preprocess(image.convert("RGB"))


@torch.inference_mode()
def plain_images(model: nn.Module, teacher: Teacher, split: Split) -> Tensor:
    """Unit features [images, dim], as in open_clip's README."""
    loader = DataLoader(Photos(teacher, split), batch_size=64, num_workers=2)
    return torch.cat([model.encode_image(batch, normalize=True) for batch in loader])  # type: ignore[operator]


@torch.inference_mode()
def plain_texts(model: nn.Module, teacher: Teacher, release: Release) -> Tensor:
    """Unit features [classes, dim] from open_clip's own zero-shot classifier."""
    names = [label.name for label in release.labels]
    templates = [lambda name, s=text: f"a photo of {name} . {s}" for text in SENTENCES]
    classifier: Tensor = open_clip.build_zero_shot_classifier(
        model, teacher.tokenizer, names, templates, num_classes_per_batch=10
    )
    return classifier.T


def timed(what: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and its seconds."""
    began = time.perf_counter()
    return what(), time.perf_counter() - began


def compare(title: str, count: int, rounds: int, sides: dict[str, Callable[[], Tensor]]) -> None:
    """Run both in alternation; print rates, their ratio and the smallest cosine of the features."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    features: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            features[name], spent = timed(side)
            seconds[name].append(spent)
    for name, spent in seconds.items():
        print(
            f"{title}, {name}: {count / median(spent):.1f}/s "
            f"(median of {rounds}; {count / max(spent):.1f} to {count / min(spent):.1f})"
        )
    a, b = features.values()
    slow, quick = (median(spent) for spent in seconds.values())
    least = (a * b).sum(dim=1).min().item()
    print(
        f"{title}: {slow / quick:.2f} times as fast; smallest cosine of both features {least:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100, help="with 10 texts each")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    skip_without_photos("teacher_speed")
    teacher = load_teacher(TEACHER)
    model = open_clip.create_model(TEACHER).eval()
    train = scan_split(DATA, "train")
    split = Split(
        "train", train.keys, train.paths[: options.images], train.targets[: options.images]
    )
    compare(
        "images",
        len(split),
        options.rounds,
        {
            "open_clip plainly": lambda: plain_images(model, teacher, split),
            "distill": lambda: image_features(teacher, split, cache=None),
        },
    )
    names = {label.name for folder in sorted((SHARED / "paper").iterdir())
             for label in release_from_pairs(folder / "label2text.txt").labels}  # fmt: skip
    labels = tuple(
        ReleaseLabel(key=f"k{number}", name=name, sentences=SENTENCES)
        for number, name in enumerate(sorted(names)[: options.classes])
    )
    release = Release(
        id=0, name="speed", label_set="speed", hash=release_hash(labels), labels=labels,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    compare(
        "texts",
        len(labels) * len(SENTENCES),
        options.rounds,
        {
            "open_clip plainly": lambda: plain_texts(model, teacher, release),
            "distill": lambda: build_text_bank(teacher, release, "ensemble").features,
        },
    )


if __name__ == "__main__":
    main()
