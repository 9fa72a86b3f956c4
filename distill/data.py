"""Image folders in the paper's layout: train/, val_on_train/ (seen) and val/ (unseen).

Notable:
- A split is its class folders in sorted order; each folder needs a label of the same key.
- Pixels are decoded once into a memory-mapped uint8 array, so that training touches no file.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from contract import IMAGE_SUFFIXES
from distill.errors import DataError, UnreadableImages, some
from distill.whole_file import whole_file

SPLITS: Final = {"train": "train", "seen": "val_on_train", "unseen": "val"}  # word → folder
SPLIT_WORDS: Final[dict[str, Literal["seen", "unseen"]]] = {
    "seen": "seen",
    "val_on_train": "seen",
    "unseen": "unseen",
    "val": "unseen",
}  # word or folder → word
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Split:
    """The images of one split: `targets[i]` indexes `keys` for the image at `paths[i]`."""

    name: str
    keys: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: Tensor  # [images] int64

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """SHA-256 over the relative path, size and modification time of every image."""
        digest = hashlib.sha256()
        for path in self.paths:
            stat = path.stat()
            relative = "/".join(path.parts[-2:])
            digest.update(f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
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
    if known is not None and (strangers := [key for key in classes if key not in known]):
        raise DataError(
            f"{folder} has {some(strangers)} without a label: add them to the label set and "
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


def open_image(path: Path) -> Image.Image:
    """The image at `path` in RGB.

    Raises:
        UnreadableImages: the file is missing, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UnreadableImages([f"{path} (it is gone)"]) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UnreadableImages([f"{path} ({_one_line(error)})"]) from None


def load_pixels(
    split: Split, size: int, cache: Path, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """All images of `split` as uint8 [images, 3, size, size], memory-mapped from `cache`.

    The shorter side is resized to `size` (bicubic) and the middle square kept. A cache file of
    the wrong length is rebuilt.

    Raises:
        UnreadableImages: some cannot be read; all of them are named.
        DataError: the cache folder cannot be written.
    """
    shape = (len(split), 3, size, size)
    path = cache / f"pixels-{split.name}-{size}-{split.fingerprint()[:16]}.u8"
    if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
        _decode(split, size, path, progress)
    # Copy on write: torch wants memory that it could write to; the file stays as it is.
    return np.memmap(path, dtype=np.uint8, mode="c", shape=shape)


def _decode(split: Split, size: int, path: Path, progress: Progress | None) -> None:
    unreadable: list[str] = []
    try:
        with whole_file(path) as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            squares = pool.map(lambda image: _square_or_reason(image, size), split.paths)
            for done, pixels in enumerate(squares, start=1):
                if isinstance(pixels, UnreadableImages):
                    unreadable += pixels.images
                elif not unreadable:
                    file.write(pixels.tobytes())
                if progress and (done % 256 == 0 or done == len(split)):
                    progress(done, len(split))
            if unreadable:
                raise UnreadableImages(unreadable)
    except OSError as error:
        raise DataError(
            f"cannot write the pixel cache {path} ({error.strerror}): free some space or choose "
            "another cache folder"
        ) from None


def _square_or_reason(path: Path, size: int) -> NDArray[np.uint8] | UnreadableImages:
    try:
        return square(open_image(path), size)
    except UnreadableImages as error:
        return error


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle square of `image`, its side resized to `size`: uint8 [3, size, size]."""
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
