"""Inputs of training and evaluation: splits, teacher, text banks, image features, pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contract import PixelMode, Release, SplitName, TextStrategy
from distill.data.files.image_file import open_image, square
from distill.data.files.row_shards import CachedRows
from distill.data.pixels import Progress, open_pixels
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels
from distill.embeddings.image_features import (
    image_feature_rows,
    image_features,
    view_feature_rows,
)
from distill.embeddings.text_bank import TextBank, build_text_bank
from distill.models.student import FILE as STUDENT_FILE
from distill.models.student import load_student
from distill.models.teacher import Teacher

VIEWS_TITLE: Final = "Teacher features, views"


@dataclass(frozen=True)
class Inputs:
    """Splits and a teacher; features and pixels computed from them are cached in `cache`."""

    splits: Mapping[SplitName, Split]
    teacher: Teacher
    cache: Path
    progress: Callable[[str], Progress]  # maps a title to a function of (done, total)
    pixel_mode: PixelMode = "auto"

    def text_bank(self, release: Release, strategy: TextStrategy, keys: Sequence[str]) -> TextBank:
        """The text bank of the classes `keys`.

        Raises:
            TextError: the release has no text of the strategy for a class.
        """
        return build_text_bank(
            self.teacher,
            release,
            strategy,
            keys=keys,
            cache=self.cache,
            progress=self.progress(f"Text bank, {strategy}"),
        )

    def teacher_features(self, split: SplitName, *, normalize: bool = True) -> Tensor:
        """The teacher's features [images, dim] float32 of the clean images of `split`.

        Raises:
            DataError: an image cannot be read, or the cache cannot be written.
        """
        return image_features(
            self.teacher,
            self.splits[split],
            cache=self.cache,
            progress=self.progress(_title(split)),
            normalize=normalize,
        )

    def view_features(self, views: int) -> tuple[Tensor, Tensor]:
        """View parameters [images, views, 6] of the training images, and the teacher's unnormalised
        features [images, views, dim] of these views.

        Raises:
            DataError: an image cannot be read, or the cache cannot be written.
        """
        params, rows = self._view_rows(views)
        return params, rows.read()

    def feature_rows(self, views: int) -> dict[str, tuple[Split, CachedRows]]:
        """What `teacher_features` of all splits and, with `views`, `view_features` read from the
        cache, each with its split, by the titles of their progress. Nothing is computed."""
        found = {
            _title(name): (split, image_feature_rows(self.teacher, split, cache=self.cache))
            for name, split in self.splits.items()
        }
        if views:
            found[VIEWS_TITLE] = (self.splits["train"], self._view_rows(views)[1])
        return found

    def _view_rows(self, views: int) -> tuple[Tensor, CachedRows]:
        return view_feature_rows(
            self.teacher,
            self.splits["train"],
            views,
            cache=self.cache,
            pixel_mode=self.pixel_mode,
            progress=self.progress(VIEWS_TITLE),
        )

    def pixels(self, split: SplitName, size: int) -> Pixels:
        """The images of `split` as uint8 [images, 3, size, size], cached or streamed.

        Raises:
            UnreadableImages: images cannot be read (raised here only if pixels are cached).
            DataError: the cache cannot be written.
        """
        progress = self.progress(f"Pixels, {split}")
        return open_pixels(self.splits[split], size, self.cache, self.pixel_mode, progress)


def _title(split: SplitName) -> str:
    return f"Teacher features, {split}"


def file_features(images: Sequence[Path], teacher: Teacher, student: Path | None) -> Tensor:
    """Features [images, dim] of image files by the teacher, or by the student in a run folder.

    Raises:
        UnreadableImages: an image cannot be read.
        ModelError: the student is missing or damaged.
    """
    opened = [open_image(path) for path in images]
    if student is None:
        crops = torch.stack([teacher.crop(image) for image in opened])
        return normalize(teacher.encode_crops(crops), dim=-1).cpu()
    network, size = load_student(student / STUDENT_FILE)
    network = network.to(teacher.device)
    return network.encode(torch.stack([torch.from_numpy(square(i, size)) for i in opened]))
