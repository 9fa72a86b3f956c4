"""Reading images: one image in RGB, and the pixels of a split.

Pixels are decoded once into a memory-mapped uint8 array, so that training touches no file.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distill.data.atomic_file import whole_file
from distill.data.splits import Split
from distill.errors import DataError, UnreadableImages

Progress = Callable[[int, int], None]  # done, total


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
