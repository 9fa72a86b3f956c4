"""The splits of a data set: train, seen (validation images), unseen (held-out classes).

A source may give the split of each image. Otherwise:
- Without validation images, the fraction HELD_OUT of the images of each class is held out of
  training. The choice depends only on HOLD_OUT_SEED and the image names, so that every run,
  evaluation and export of a data set agrees, and adding an image changes few others.
- Unseen classes are optional.
- A folder `val` has unseen classes, as in the paper, unless all of its classes are trained on: then
  it has validation images.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from contract import SplitName
from distill.data.files.packed_image import ImagePath, location, version
from distill.data.sources.find import find_source
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError, some

SPLITS: Final[Mapping[SplitName, str]] = {
    "train": "train",
    "seen": "val_on_train",
    "unseen": "val",
}  # name → folder
EVALUATION_SPLITS: Final[dict[str, Literal["seen", "unseen"]]] = {
    "seen": "seen",
    "val_on_train": "seen",
    "unseen": "unseen",
    "val": "unseen",
}  # name or folder → name
# Other names of splits: validation images, or the unseen classes of the paper.
VALIDATION_NAMES: Final = ("val", "validation", "valid", "dev", "test")  # the first one is used
HELD_OUT: Final = 0.2  # fraction of each class's training images, without validation images
HOLD_OUT_SEED: Final = 0
CACHE: Final = Path(".distill-cache")
NO_UNSEEN: Final = (
    "the data has no unseen classes, so the accuracy on classes that were not trained on is not "
    "measured: put images of other classes in val/, or hold some out with `distill data split "
    "--unseen N`"
)


@dataclass(frozen=True)
class Split:
    """The images of one split: `targets[i]` indexes `keys` for the image at `paths[i]`."""

    name: str
    keys: tuple[str, ...]
    paths: tuple[ImagePath, ...]
    targets: Tensor  # [images] int64
    held_out: bool = False  # whether the images were held out of the training images

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the relative path, size and modification time of every image."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode("/".join(location(path).parts[-2:])))  # may not be UTF-8
            try:
                size, time_ns = version(path)
            except OSError:  # for example a broken link, which decoding reports
                digest.update(b"\0\n")
            else:
                digest.update(f"\0{size}\0{time_ns}\n".encode())
        return digest.hexdigest()


def scan_splits(
    data: str | Path,
    known: Collection[str] | None = None,
    names: Sequence[SplitName] = tuple(SPLITS),
    *,
    cache: Path = CACHE,
    progress: Progress | None = None,
) -> dict[SplitName, Split]:
    """The splits `names` of `data`. Only unseen may be missing from the result.

    `known` has the keys of the labels. `cache` is a folder for images that are not separate files;
    `progress` is called while they are unpacked.

    Raises:
        DataError: a split has no images, its classes contradict the other splits or are not
            `known`, or the data cannot be read.
    """
    images = assign_splits(find_source(data).images(cache, progress))
    held_out = "train" in images and "seen" not in images
    if held_out:
        images["seen"] = hold_out(images["train"])
        taken = {image.path for image in images["seen"]}
        images["train"] = [image for image in images["train"] if image.path not in taken]
    for name in names:
        if name not in images and name != "unseen":
            raise DataError(
                f"{data} has no {name} images: the data needs class folders, or train/ and "
                "optionally val_on_train/ and val/ with one folder per class"
            )
    splits = {
        name: _split(name, images[name], held_out=held_out and name == "seen")
        for name in names
        if name in images
    }
    _check_classes(data, {name: {image.key for image in images[name]} for name in images})
    for split in splits.values():
        unknown = [key for key in split.keys if known is not None and key not in known]
        if unknown:
            raise DataError(
                f"{data} has {some(unknown)} without a label: add them to the label set and "
                "release again, or remove them from the data"
            )
    return splits


def scan_split(
    data: str | Path,
    name: SplitName,
    known: Collection[str] | None = None,
    *,
    cache: Path = CACHE,
) -> Split:
    """The split `name` of `data`; see `scan_splits`.

    Raises:
        DataError: as in `scan_splits`, or there are no unseen classes.
    """
    splits = scan_splits(data, known, (name,), cache=cache)
    if name not in splits:
        raise DataError(f"{data}: {NO_UNSEEN}")
    return splits[name]


def assign_splits(images: Iterable[LabelledImage]) -> dict[SplitName, list[LabelledImage]]:
    """Group images by split. Images without a split are for training.

    Raises:
        DataError: a split's name is unknown.
    """
    by_name: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        by_name[(image.split or "train").strip().lower()].append(image)
    splits: dict[SplitName, list[LabelledImage]] = {}
    for name, folder in SPLITS.items():
        if both := by_name.pop(name, []) + (by_name.pop(folder, []) if folder != "val" else []):
            splits[name] = both
    validation = [
        by_name.pop(name) for name in VALIDATION_NAMES if name in by_name
    ]  # only the first is used; the others are test sets
    if by_name:
        raise DataError(
            f"unknown split {next(iter(by_name))!r}: rename it to train, val_on_train "
            "(validation images) or val (unseen classes)"
        )
    if validation:
        trained = {image.key for image in splits.get("train", [])}
        seen = {image.key for image in validation[0]} <= trained and "seen" not in splits
        splits.setdefault("seen" if seen else "unseen", validation[0])
    return splits


def hold_out(
    images: Sequence[LabelledImage], share: float = HELD_OUT, seed: int = HOLD_OUT_SEED
) -> list[LabelledImage]:
    """Choose the fraction `share` of the images of each class, at least one if it has two.

    The choice is by a hash of `seed`, class and file name. Crops of the same photo stay together,
    so that fewer images of a class may be chosen.

    Raises:
        DataError: no class has images in two photos.
    """
    units: dict[tuple[bytes, str], list[LabelledImage]] = defaultdict(list)
    for image in images:
        units[_rank(image, seed), image.photo or str(image.path)].append(image)
    sizes = Counter(image.key for image in images)
    wanted = {key: min(max(1, round(share * size)), size - 1) for key, size in sizes.items()}
    taken: Counter[str] = Counter()
    chosen: list[LabelledImage] = []
    for _, unit in sorted(units.items()):
        counts = Counter(image.key for image in unit)
        if all(taken[key] + count <= wanted[key] for key, count in counts.items()):
            taken.update(counts)
            chosen += unit
    if not chosen:
        raise DataError(
            "no class has two images (of different photos), so none can be held out: add images"
        )
    return sorted(chosen, key=in_order)


def in_order(image: LabelledImage) -> tuple[str, Path]:
    """Sort key of images: class, then path."""
    return image.key, location(image.path)


def _rank(image: LabelledImage, seed: int) -> bytes:
    name = image.photo or f"{image.key}\0{location(image.path).name}"
    return hashlib.sha256(os.fsencode(f"{seed}\0{name}")).digest()


def _split(name: SplitName, images: Iterable[LabelledImage], *, held_out: bool = False) -> Split:
    """The split of `images`, sorted by class and path."""
    ordered = sorted(images, key=in_order)
    keys = tuple(dict.fromkeys(image.key for image in ordered))
    index = {key: number for number, key in enumerate(keys)}
    targets = torch.tensor([index[image.key] for image in ordered], dtype=torch.int64)
    return Split(name, keys, tuple(image.path for image in ordered), targets, held_out)


def _check_classes(data: str | Path, classes: Mapping[SplitName, Collection[str]]) -> None:
    """Check that the classes of the splits are consistent."""
    if "train" not in classes:
        return
    trained = set(classes["train"])
    if untrained := sorted(set(classes.get("seen", ())) - trained):
        raise DataError(
            f"{data} has validation images of the class {untrained[0]!r}, which is not in train: "
            "seen classes need images in both"
        )
    if both := sorted(set(classes.get("unseen", ())) & trained):
        raise DataError(
            f"{data} has {both[0]!r} among the unseen classes (val) and in train: move its images "
            "to val_on_train"
        )
