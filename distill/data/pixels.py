"""The pixels of a split.

Pixels are decoded once into a memory-mapped uint8 array, so that training touches no file.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.files.atomic_file import atomic_file
from distill.data.files.image_file import DECODING, open_image, square
from distill.data.splits import Split
from distill.errors import DataError, UnreadableImages

Progress = Callable[[int, int], None]  # done, total


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
    path = cache / f"pixels{DECODING}-{split.name}-{size}-{split.fingerprint[:16]}.u8"
    if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
        _decode(split, size, path, progress)
    # Copy on write: torch expects writable memory; the file does not change.
    return np.memmap(path, dtype=np.uint8, mode="c", shape=shape)


def _decode(split: Split, size: int, path: Path, progress: Progress | None) -> None:
    unreadable: list[str] = []
    try:
        with atomic_file(path) as file, ThreadPoolExecutor(usable_cores()) as pool:
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


def usable_cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
