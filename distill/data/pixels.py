"""The pixels of a split: cached or streamed, whichever suits their size.

Cached pixels are decoded once into a memory-mapped uint8 array, so that training touches no image
file. Streamed ones are decoded again in each epoch, and need neither disk nor memory. A student
learns the same from both.
"""

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from contract import PixelMode
from distill.data.cores import usable_cores
from distill.data.files.atomic_file import atomic_file
from distill.data.files.image_file import DECODING, open_image, square
from distill.data.files.packed_image import ImagePath
from distill.data.memory import memory_bytes
from distill.data.sources.labelled_image import Progress as Progress
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels, StreamedPixels
from distill.errors import DataError, UnreadableImages

CACHE_SHARE: Final = 0.5  # of the memory, and of the free disk, that cached pixels may take
PROGRESS_IMAGES: Final = 16  # between calls of `progress`, which may end the decoding


@dataclass(frozen=True)
class PixelChoice:
    """Whether pixels are cached or streamed, and why."""

    mode: Literal["cached", "streamed"]
    reason: str

    def __str__(self) -> str:
        return f"pixels: {self.mode} ({self.reason})"


def choose_pixels(mode: PixelMode, splits: Iterable[Split], size: int, cache: Path) -> PixelChoice:
    """What `mode` means for images of `size` pixels: "auto" caches what fits.

    Pixels fit if they take at most CACHE_SHARE of the memory, and those that are not in `cache`
    yet at most that share of the free disk there.
    """
    files = {_cache_file(split, size, cache): len(split) * 3 * size * size for split in splits}
    decoded = sum(files.values())
    if mode != "auto":
        return PixelChoice(mode, f"as configured, {_gigabytes(decoded)} decoded")
    missing = sum(count for path, count in files.items() if not path.is_file())
    for what, needed, whole in (
        ("memory", decoded, memory_bytes()),
        ("free disk", missing, _free_disk(cache)),
    ):
        if needed > CACHE_SHARE * whole:
            share = f"more than {CACHE_SHARE:.0%} of the {what}, {_gigabytes(whole)}"
            return PixelChoice("streamed", f"{_gigabytes(needed)} decoded, {share}")
    return PixelChoice("cached", f"{_gigabytes(decoded)} decoded")


def open_pixels(
    split: Split, size: int, cache: Path, mode: PixelMode, progress: Progress | None = None
) -> Pixels:
    """All images of `split` as uint8 [images, 3, size, size], cached or streamed; see `load_pixels`
    and `StreamedPixels`. "auto" is chosen for this split alone.

    Raises:
        UnreadableImages: some cannot be read, if they are cached; the error lists all of them.
        DataError: the cache folder cannot be written.
    """
    if choose_pixels(mode, [split], size, cache).mode == "streamed":
        return StreamedPixels(split.paths, size)
    return torch.from_numpy(load_pixels(split, size, cache, progress))


def load_pixels(
    split: Split, size: int, cache: Path, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """All images of `split` as uint8 [images, 3, size, size], memory-mapped from `cache`.

    The shorter side is resized to `size` (bicubic) and the centre square cropped. A cache file of
    the wrong length is rebuilt.

    Raises:
        UnreadableImages: some cannot be read; the error lists all of them.
        DataError: the cache folder cannot be written.
    """
    shape = (len(split), 3, size, size)
    path = _cache_file(split, size, cache)
    if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
        _decode(split, size, path, progress)
    # Copy on write: torch expects writable memory; the file does not change.
    return np.memmap(path, dtype=np.uint8, mode="c", shape=shape)


def _cache_file(split: Split, size: int, cache: Path) -> Path:
    return cache / f"pixels{DECODING}-{split.name}-{size}-{split.fingerprint[:16]}.u8"


def _free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be created."""
    existing = next(
        each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()
    )
    return shutil.disk_usage(existing).free


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _decode(split: Split, size: int, path: Path, progress: Progress | None) -> None:
    unreadable: list[str] = []
    pool = ThreadPoolExecutor(usable_cores())
    try:
        with atomic_file(path) as file:
            squares = pool.map(lambda image: _square_or_reason(image, size), split.paths)
            for done, pixels in enumerate(squares, start=1):
                if isinstance(pixels, UnreadableImages):
                    unreadable += pixels.images
                elif not unreadable:
                    file.write(pixels.tobytes())
                if progress and (done % PROGRESS_IMAGES == 0 or done == len(split)):
                    progress(done, len(split))
            if unreadable:
                raise UnreadableImages(unreadable)
    except OSError as error:
        raise DataError(
            f"cannot write the pixel cache {path} ({error.strerror}): free some space, choose "
            'another cache folder or set pixels = "streamed"'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # `progress` may raise long before the end


def _square_or_reason(path: ImagePath, size: int) -> NDArray[np.uint8] | UnreadableImages:
    try:
        return square(open_image(path), size)
    except UnreadableImages as error:
        return error
