"""Checks a data set before training: counts, unreadable files, duplicates, leaks."""

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from contract import IMAGE_SUFFIXES, SplitName, is_hidden
from distill.data.pixels import Progress
from distill.data.preparation.duplicates import Fingerprint, fingerprints, near_duplicates
from distill.data.sources.boxes import skipped_boxes
from distill.data.sources.coco import CocoExport
from distill.data.sources.folders import ClassFolders, SplitFolders
from distill.data.sources.labelled_image import LabelledImage, Source
from distill.data.sources.yolo import YoloExport
from distill.errors import UnreadableImages

SMALL: Final = 32  # pixels of the shorter side


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitCheck(_Frozen):
    """Images and classes of one split."""

    images: int
    classes: int
    smallest_class: str
    fewest: int
    largest_class: str
    most: int


class Duplicates(_Frozen):
    """Paths of identical or nearly identical images."""

    images: tuple[str, ...]
    same_bytes: bool
    splits: Annotated[tuple[SplitName, ...], Field(description="Several mean a leak")]
    classes: Annotated[tuple[str, ...], Field(description="Several mean a wrong label")]


class DataCheck(_Frozen):
    """The findings on a data set."""

    splits: dict[SplitName, SplitCheck]
    class_sizes: Annotated[dict[str, int], Field(description="Images per class, over all splits")]
    unreadable: Annotated[tuple[str, ...], Field(description="Paths with the reason")]
    skipped: Annotated[dict[str, int], Field(description="Other files, by suffix, or as hidden")]
    skipped_boxes: Annotated[
        dict[str, int] | None, Field(description="By reason; null if the data has no boxes")
    ]
    shorter_side: Annotated[
        tuple[int, int, int] | None, Field(description="Pixels: smallest, median, largest")
    ]
    small: Annotated[int, Field(description=f"Images with a side below {SMALL} pixels")]
    duplicates: tuple[Duplicates, ...]

    @property
    def leaks(self) -> list[Duplicates]:
        """Duplicates and near-duplicates in more than one split."""
        return [group for group in self.duplicates if len(group.splits) > 1]

    @property
    def label_conflicts(self) -> list[Duplicates]:
        """Duplicates and near-duplicates in more than one class."""
        return [group for group in self.duplicates if len(group.classes) > 1]


def check_data(
    source: Source,
    splits: Mapping[SplitName, Sequence[LabelledImage]],
    progress: Progress | None = None,
) -> DataCheck:
    """Read all images of `source`, given by split, and return the findings.

    Raises:
        DataError: the package imagehash is missing.
    """
    images = [(split, image) for split in splits for image in splits[split]]
    results = fingerprints([image.path for _, image in images], progress)
    readable = [
        (split, image, fingerprint)
        for (split, image), fingerprint in zip(images, results, strict=True)
        if isinstance(fingerprint, Fingerprint)
    ]
    sides = [min(fingerprint.size) for _, _, fingerprint in readable]
    groups = near_duplicates([fingerprint.perceptual for _, _, fingerprint in readable])
    return DataCheck(
        splits={split: _count(splits[split]) for split in splits},
        class_sizes=dict(sorted(Counter(image.key for _, image in images).items())),
        unreadable=tuple(
            name for result in results if isinstance(result, UnreadableImages)
            for name in result.images
        ),
        skipped=skipped_files(source),
        skipped_boxes=(
            skipped_boxes(source) if isinstance(source, CocoExport | YoloExport) else None
        ),
        shorter_side=(min(sides), round(statistics.median(sides)), max(sides)) if sides else None,
        small=sum(side < SMALL for side in sides),
        duplicates=tuple(_duplicates([readable[index] for index in group]) for group in groups),
    )  # fmt: skip


def skipped_files(source: Source) -> dict[str, int]:
    """The number of other files than images in a folder, by suffix, most frequent first.

    Hidden files and those in hidden folders are counted as "hidden", whatever their suffix.
    """
    if not isinstance(source, SplitFolders | ClassFolders):
        return {}
    kinds: Counter[str] = Counter()
    for folder, _, files in os.walk(source.root):
        in_hidden = any(map(is_hidden, Path(folder).relative_to(source.root).parts))
        for name in files:
            suffix = Path(name).suffix.lower()
            if in_hidden or is_hidden(name):
                kinds["hidden"] += 1
            elif suffix not in IMAGE_SUFFIXES:
                kinds[suffix or "no suffix"] += 1
    return dict(kinds.most_common())


def _count(images: Iterable[LabelledImage]) -> SplitCheck:
    sizes: dict[str, int] = defaultdict(int)
    for image in images:
        sizes[image.key] += 1
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    return SplitCheck(
        images=sum(sizes.values()),
        classes=len(sizes),
        smallest_class=smallest,
        fewest=sizes[smallest],
        largest_class=largest,
        most=sizes[largest],
    )


def _duplicates(group: Sequence[tuple[SplitName, LabelledImage, Fingerprint]]) -> Duplicates:
    return Duplicates(
        images=tuple(str(image.path) for _, image, _ in group),
        same_bytes=len({fingerprint.sha256 for _, _, fingerprint in group}) == 1,
        splits=tuple(sorted({split for split, _, _ in group})),
        classes=tuple(sorted({image.key for _, image, _ in group})),
    )
