"""Splits of a data folder: train/, val_on_train/ (seen classes) and val/ (unseen classes).

A split is its class folders in sorted order; each folder needs a label of the same key.
"""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from contract import IMAGE_SUFFIXES
from distill.errors import DataError, some

SPLITS: Final = {"train": "train", "seen": "val_on_train", "unseen": "val"}  # name → folder
EVALUATION_SPLITS: Final[dict[str, Literal["seen", "unseen"]]] = {
    "seen": "seen",
    "val_on_train": "seen",
    "unseen": "unseen",
    "val": "unseen",
}  # name or folder → name


@dataclass(frozen=True)
class Split:
    """The images of one split: `targets[i]` indexes `keys` for the image at `paths[i]`."""

    name: str
    keys: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: Tensor  # [images] int64

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the relative path, size and modification time of every image."""
        digest = hashlib.sha256()
        for path in self.paths:
            stat = path.stat()
            digest.update(os.fsencode("/".join(path.parts[-2:])))  # may be no UTF-8
            digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def scan_split(root: Path, name: str, known: Collection[str] | None = None) -> Split:
    """The split called `name` ('train', 'seen', 'unseen', or a folder name) below `root`.

    Raises:
        DataError: the folder is missing or empty, a class folder has no image, or its key is not
            among the `known` labels.
    """
    folder = root / SPLITS.get(name, name)
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: the data folder needs train/, val_on_train/ and val/ "
            "with one folder per class"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DataError(f"{folder} holds no class folder: put the images of each class in its own")
    if known is not None and (unknown := [key for key in classes if key not in known]):
        raise DataError(
            f"{folder} has {some(unknown)} without a label: add them to the label set and "
            "release again, or remove the folders"
        )
    paths: list[Path] = []
    targets: list[int] = []
    for index, key in enumerate(classes):
        images = sorted(
            path for path in (folder / key).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not images:
            raise DataError(
                f"the class folder {folder / key} holds no image: add some or remove it"
            )
        paths += images
        targets += [index] * len(images)
    return Split(name, tuple(classes), tuple(paths), torch.tensor(targets))
