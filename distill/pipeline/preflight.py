"""Checks of the inputs before the first training step.

All checks run before any error is raised, so that one log message lists all problems.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from contract import Preflight, Release, SplitCount, SplitName, TrainConfig
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels, StreamedPixels
from distill.embeddings.class_prompts import has_text
from distill.embeddings.image_features import image_features
from distill.errors import ModelError, TextError, UnreadableImages, counted, some
from distill.evaluation.accuracy import accuracy
from distill.pipeline.inputs import Inputs

SAMPLE: Final = 512  # seen images that the teacher is evaluated on
SIGNIFICANCE: Final = 0.05  # level of the test whether the teacher is better than chance
LISTED: Final = 50  # files and classes listed in the log


def preflight(
    config: TrainConfig, release: Release, inputs: Inputs, log: Callable[[str], None]
) -> tuple[Preflight, dict[SplitName, Pixels]]:
    """Check the inputs. Returns the findings, and the pixels [images, 3, size, size] of each split.

    Streamed pixels are not decoded here; unreadable images are found when the teacher encodes them.

    Raises:
        UserError: training is impossible or useless; the findings are logged first.
    """
    splits = inputs.splits
    pixels: dict[SplitName, Pixels] = {}
    broken: dict[SplitName, UnreadableImages] = {}
    for name in splits:
        try:
            pixels[name] = inputs.pixels(name, config.image_size)
        except UnreadableImages as error:
            broken[name] = error
    keys = {key for split in splits.values() for key in split.keys}
    without_text = tuple(
        label.key
        for label in release.labels
        if label.key in keys and not has_text(label, config.text_strategy)
    )
    top1, sample = None, _sample(splits["seen"])
    if not without_text and "seen" not in broken:
        bank = inputs.text_bank(release, config.text_strategy, sample.keys)
        features = image_features(
            inputs.teacher,
            sample,
            cache=inputs.cache,
            progress=inputs.progress("Teacher features, sample"),
            normalize=False,
        )
        top1 = accuracy("teacher", "seen", features, sample.targets, sample.keys, bank).top1
    checks = Preflight(
        splits=tuple(_count(name, split) for name, split in splits.items()),
        unreadable=tuple(path for error in broken.values() for path in error.images),
        without_text=without_text,
        teacher_sample=len(sample),
        teacher_top1=top1,
        chance=100 / len(sample.keys),
    )
    streamed = any(isinstance(split, StreamedPixels) for split in pixels.values())
    log("\n".join(describe(checks, decoded=not streamed)))
    _raise_errors(checks, broken, config)
    return checks, pixels


def describe(checks: Preflight, *, decoded: bool = True) -> list[str]:
    """The findings as lines of text. `decoded` is whether all images were decoded."""
    lines = [
        f"{split.split}: {counted(split.images, 'image')} of {counted(split.classes, 'class')}, "
        f"{split.fewest} to {split.most} per class"
        + (", held out of training" if split.held_out else "")
        for split in checks.splits
    ]
    if not decoded:
        lines.append("unreadable images: checked when the teacher encodes them")
    for title, items in (
        *([("unreadable images", checks.unreadable)] if decoded else []),
        ("classes without text", checks.without_text),
    ):
        lines.append(f"{title}: {len(items) or 'none'}")
        lines += [f"  {item}" for item in items[:LISTED]]
        if len(items) > LISTED:
            lines.append(f"  and {len(items) - LISTED} more")
    if checks.teacher_top1 is not None:
        lines.append(
            f"teacher: top-1 {checks.teacher_top1:.1f} % on {checks.teacher_sample} seen images "
            f"(chance: {checks.chance:.1f} %)"
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
        held_out=split.held_out,
    )


def _sample(split: Split) -> Split:
    """At most SAMPLE images of the split, evenly spaced."""
    if len(split) <= SAMPLE:
        return split
    part = torch.linspace(0, len(split) - 1, SAMPLE, dtype=torch.float64).long()
    paths = tuple(split.paths[index] for index in part.tolist())
    return Split(f"{split.name}-sample", split.keys, paths, split.targets[part])


def _raise_errors(
    checks: Preflight, broken: Mapping[SplitName, UnreadableImages], config: TrainConfig
) -> None:
    if checks.unreadable:
        raise UnreadableImages([path for error in broken.values() for path in error.images])
    if checks.without_text:
        raise TextError(
            f"{len(checks.without_text)} classes have no text for the strategy "
            f"{config.text_strategy!r} ({some(checks.without_text)}): enrich them and release "
            "again, or use the strategy 'name'"
        )
    if checks.teacher_top1 is None:
        return
    hits = round(checks.teacher_top1 / 100 * checks.teacher_sample)
    if not is_above_chance(hits, checks.teacher_sample, checks.chance / 100):
        raise ModelError(
            f"the teacher {config.teacher} recognises {checks.teacher_top1:.1f} % of the seen "
            f"images, no more than chance ({checks.chance:.1f} %): check that folders, labels and "
            "texts belong together"
        )


def is_above_chance(hits: int, images: int, chance: float) -> bool:
    """Whether `hits` correct of `images` is significantly better than chance (exact binomial test).

    Also True if there are too few images for any result to be significant, as with two images of
    two classes.
    """
    if chance**images > SIGNIFICANCE:
        return True
    p_value = sum(
        math.comb(images, correct) * chance**correct * (1 - chance) ** (images - correct)
        for correct in range(hits, images + 1)
    )
    return p_value <= SIGNIFICANCE
