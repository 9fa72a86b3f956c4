"""What training and evaluation read: image splits, teacher, text banks, image features, pixels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from contract import Release, SplitName, TextStrategy
from distill.data.image_file import open_image, square
from distill.data.pixels import Progress, load_pixels
from distill.data.splits import Split, scan_split
from distill.embeddings.image_features import image_features, view_features
from distill.embeddings.text_bank import TextBank, build_text_bank
from distill.errors import DataError
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import load_student
from distill.models.teacher import Teacher

SPLITS: Final[tuple[SplitName, ...]] = ("train", "seen", "unseen")


def scan_splits(
    root: Path, keys: Collection[str], names: Sequence[SplitName] = SPLITS
) -> dict[SplitName, Split]:
    """The splits `names` below the data folder `root`; `keys` are those of the labels.

    Raises:
        DataError: a split is missing, or the classes of the splits do not fit each other or `keys`.
    """
    splits = {name: scan_split(root, name, keys) for name in names}
    classes = {name: set(split.keys) for name, split in splits.items()}
    if "train" not in classes:
        return splits
    if untrained := sorted(classes.get("seen", set()) - classes["train"]):
        raise DataError(
            f"{root}/val_on_train has the class {untrained[0]!r}, which is not in train/: seen "
            "classes need images in both"
        )
    if trained := sorted(classes.get("unseen", set()) & classes["train"]):
        raise DataError(
            f"{root}/val has the class {trained[0]!r}, which is also in train/ and so not unseen: "
            "move it to val_on_train/"
        )
    return splits


@dataclass(frozen=True)
class Inputs:
    """Splits and a teacher. What is computed from them is kept in the folder `cache`."""

    splits: Mapping[SplitName, Split]
    teacher: Teacher
    cache: Path
    progress: Callable[[str], Progress]  # from a title to a function of (done, total)

    def text_bank(self, release: Release, strategy: TextStrategy, keys: Sequence[str]) -> TextBank:
        """The text bank of the classes `keys`.

        Raises:
            TextError: the release lacks a class, or a text that the strategy needs.
        """
        return build_text_bank(self.teacher, release, strategy, keys=keys, cache=self.cache)

    def teacher_features(self, split: SplitName, *, normalize: bool = True) -> Tensor:
        """The teacher's features [images, dim] float32 of the clean images of `split`.

        Raises:
            DataError: an image cannot be read, or the cache cannot be written.
        """
        return image_features(
            self.teacher,
            self.splits[split],
            cache=self.cache,
            progress=self.progress(f"Teacher features, {split}"),
            normalize=normalize,
        )

    def view_features(self, views: int) -> tuple[Tensor, Tensor]:
        """View parameters [images, views, 6] of the training images, and the teacher's raw features
        of those views [images, views, dim].

        Raises:
            DataError: an image cannot be read, or the cache cannot be written.
        """
        return view_features(
            self.teacher,
            self.splits["train"],
            views,
            cache=self.cache,
            progress=self.progress("Teacher features, views"),
        )

    def pixels(self, split: SplitName, size: int) -> Tensor:
        """The images of `split` as uint8 [images, 3, size, size].

        Raises:
            UnreadableImages: some cannot be read; the error names all of them.
            DataError: the cache cannot be written.
        """
        progress = self.progress(f"Pixels, {split}")
        return torch.from_numpy(load_pixels(self.splits[split], size, self.cache, progress))


def file_features(images: Sequence[Path], teacher: Teacher, student: Path | None) -> Tensor:
    """Features [images, dim] of image files: the teacher's, or those of the run folder `student`.

    Raises:
        UnreadableImages: an image cannot be read.
        ModelError: the student is missing or damaged.
    """
    opened = [open_image(path) for path in images]
    if student is None:
        return teacher.encode_image(torch.stack([teacher.preprocess(image) for image in opened]))
    network, size = load_student(student / STUDENT_FILE)
    return network.encode(torch.stack([torch.from_numpy(square(i, size)) for i in opened]))
