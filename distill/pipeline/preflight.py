"""What is looked at before the first step, so that no hours are spent in vain.

Everything is looked at before anything is refused: one block names all that is wrong at once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from contract import Preflight, Release, SplitCount, SplitName, TrainConfig
from distill.data.pixels import Progress, load_pixels
from distill.data.splits import Split, scan_split
from distill.embeddings.image_features import image_embeddings
from distill.embeddings.prompts import has_text
from distill.embeddings.text_bank import build_text_bank
from distill.errors import DataError, ModelError, TextError, UnreadableImages, some
from distill.evaluation.accuracy import accuracy
from distill.models.teacher import Teacher

SPLITS: Final[tuple[SplitName, ...]] = ("train", "seen", "unseen")
SAMPLE: Final = 512  # seen images that the teacher is tried on
LISTED: Final = 50  # files and classes named in the block


def scan_splits(root: Path, release: Release) -> dict[SplitName, Split]:
    """The three splits below the data folder `root`.

    Raises:
        DataError: one is missing, or their classes do not fit each other or the release.
    """
    known = {label.key for label in release.labels}
    splits = {name: scan_split(root, name, known) for name in SPLITS}
    train = set(splits["train"].keys)
    if strange := sorted(set(splits["seen"].keys) - train):
        raise DataError(
            f"{root}/val_on_train has the class {strange[0]!r}, which is not in train/: seen "
            "classes need images in both"
        )
    if both := sorted(set(splits["unseen"].keys) & train):
        raise DataError(
            f"{root}/val has the class {both[0]!r}, which is also in train/ and so not unseen: "
            "move it to val_on_train/"
        )
    return splits


def preflight(
    config: TrainConfig,
    release: Release,
    splits: Mapping[SplitName, Split],
    teacher: Teacher,
    *,
    cache: Path,
    progress: Callable[[str], Progress],
    log: Callable[[str], None],
) -> tuple[Preflight, dict[SplitName, Tensor]]:
    """What was found, and the pixels [images, 3, size, size] of each split, decoded on the way.

    Raises:
        UserError: training would be in vain, or impossible; the block is logged before.
    """
    pixels: dict[SplitName, Tensor] = {}
    broken: dict[SplitName, UnreadableImages] = {}
    for name, split in splits.items():
        try:
            array = load_pixels(split, config.image_size, cache, progress(f"Pixels, {name}"))
            pixels[name] = torch.from_numpy(array)
        except UnreadableImages as error:
            broken[name] = error
    keys = {key for split in splits.values() for key in split.keys}
    silent = tuple(
        label.key
        for label in release.labels
        if label.key in keys and not has_text(label, config.text_strategy)
    )
    top1, sample = None, _sample(splits["seen"])
    if not silent and "seen" not in broken:
        bank = build_text_bank(
            teacher, release, config.text_strategy, keys=sample.keys, cache=cache
        )
        features = image_embeddings(teacher, sample, cache=cache)
        top1 = accuracy("teacher", "seen", features, sample.targets, sample.keys, bank).top1
    found = Preflight(
        splits=tuple(_count(name, split) for name, split in splits.items()),
        unreadable=tuple(path for error in broken.values() for path in error.images),
        without_text=silent,
        teacher_sample=len(sample),
        teacher_top1=top1,
        chance=100 / len(sample.keys),
    )
    log("\n".join(describe(found)))
    _refuse(found, broken, config)
    return found, pixels


def describe(found: Preflight) -> list[str]:
    """The block that a person reads, line by line."""
    lines = [
        f"{each.split}: {each.images:,} images of {each.classes} classes, {each.fewest} to "
        f"{each.most} a class"
        for each in found.splits
    ]
    for what, items in (
        ("unreadable images", found.unreadable),
        ("classes without text", found.without_text),
    ):
        lines.append(f"{what}: {len(items) or 'none'}")
        lines += [f"  {item}" for item in items[:LISTED]]
        if len(items) > LISTED:
            lines.append(f"  and {len(items) - LISTED} more")
    if found.teacher_top1 is not None:
        lines.append(
            f"teacher: {found.teacher_top1:.1f} % of {found.teacher_sample} seen images right, "
            f"{found.chance:.1f} % by chance"
        )
    return lines


def _count(name: SplitName, split: Split) -> SplitCount:
    images = torch.bincount(split.targets, minlength=len(split.keys))
    return SplitCount(
        split=name,
        images=len(split),
        classes=len(split.keys),
        fewest=int(images.min()),
        most=int(images.max()),
    )


def _sample(split: Split) -> Split:
    """At most SAMPLE images of the split, evenly spaced."""
    if len(split) <= SAMPLE:
        return split
    part = torch.linspace(0, len(split) - 1, SAMPLE, dtype=torch.float64).long()
    paths = tuple(split.paths[index] for index in part.tolist())
    return Split(f"{split.name}-sample", split.keys, paths, split.targets[part])


def _refuse(
    found: Preflight, broken: Mapping[SplitName, UnreadableImages], config: TrainConfig
) -> None:
    if found.unreadable:
        raise UnreadableImages([path for error in broken.values() for path in error.images])
    if found.without_text:
        raise TextError(
            f"{len(found.without_text)} classes have no text for the strategy "
            f"{config.text_strategy!r} ({some(found.without_text)}): enrich them and release "
            "again, or use the strategy 'name'"
        )
    if found.teacher_top1 is None:
        return
    chance = found.chance / 100
    error = (chance * (1 - chance) / found.teacher_sample) ** 0.5
    if found.teacher_top1 / 100 <= chance + 3 * error:
        raise ModelError(
            f"the teacher {config.teacher} recognises {found.teacher_top1:.1f} % of the seen "
            f"images, no more than chance ({found.chance:.1f} %): check that folders, labels and "
            "texts belong together"
        )
