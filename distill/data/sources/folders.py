"""Class folders: below train/, val_on_train/ and val/, or directly in the data folder.

Hidden files and folders are ignored at any depth.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES, is_hidden
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError

SPLIT_FOLDERS: Final = ("train", "val_on_train", "val", "validation", "valid", "test")


@dataclass(frozen=True)
class SplitFolders:
    """A folder with train/ and, optionally, validation folders, each with one folder per class."""

    root: Path

    def images(self, cache: Path, progress: Progress | None = None) -> Iterator[LabelledImage]:
        """The images of all split folders, class by class."""
        for split in SPLIT_FOLDERS:
            if _holds_folders(self.root / split):
                yield from _class_folders(self.root / split, split)


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one folder per class, without splits."""

    root: Path

    def images(self, cache: Path, progress: Progress | None = None) -> Iterator[LabelledImage]:
        """The images of all class folders."""
        yield from _class_folders(self.root, None)


def has_split_folders(root: Path) -> bool:
    """Whether `root` has a split folder with class folders; otherwise "train" may be a class."""
    return any(_holds_folders(root / split) for split in SPLIT_FOLDERS)


def image_files(folder: Path) -> list[Path]:
    """The image files anywhere below `folder` that are not hidden, sorted."""
    depth = len(folder.parts)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, path.parts[depth:]))
    )


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(_subfolders(folder))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)
        )


def _class_folders(folder: Path, split: str | None) -> Iterator[LabelledImage]:
    classes = _subfolders(folder)
    if not classes:
        raise DataError(f"{folder} has no class folders: put the images of each class in a folder")
    for key in classes:
        images = image_files(folder / key)
        if not images:
            raise DataError(f"the class folder {folder / key} has no images: add some or remove it")
        for path in images:
            yield LabelledImage(split, key, path)
