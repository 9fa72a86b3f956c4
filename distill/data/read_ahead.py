"""Prefetching: images decoded in threads, a few batches ahead of their use.

The threads decode, resize and crop; Pillow releases the GIL for this, so that all cores are used.
At most AHEAD batches and the current one are in memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.data.cores import usable_cores
from distill.data.files.image_file import open_image
from distill.data.files.packed_image import ImagePath
from distill.errors import UnreadableImages

AHEAD: Final = 4  # batches
TASK_IMAGES: Final = 16  # maximum number of images per task of a thread

Decode = Callable[[Image.Image], NDArray[np.uint8]]  # → [3, height, width], the same for all
_Task = Future[list[NDArray[np.uint8] | UnreadableImages]]


def decode_ahead(batches: Iterable[Sequence[ImagePath]], decode: Decode) -> Iterator[Tensor]:
    """The decoded images of each batch, uint8 [batch, 3, height, width].

    Raises:
        UnreadableImages: images cannot be read; lists those of the batch.
    """
    pool = ThreadPoolExecutor(usable_cores())
    waiting: deque[list[_Task]] = deque()
    try:
        for paths in batches:
            waiting.append(
                [pool.submit(_decode, part, decode) for part in _parts(paths, usable_cores())]
            )
            if len(waiting) > AHEAD:
                yield _stack(waiting.popleft())
        while waiting:
            yield _stack(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def find_unreadable(paths: Sequence[ImagePath]) -> list[str]:
    """The images that cannot be read, each as a path with the reason."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [name for names in pool.map(_reason, paths) for name in names]


def _reason(path: ImagePath) -> tuple[str, ...]:
    try:
        open_image(path)
    except UnreadableImages as error:
        return error.images
    return ()


def _parts(paths: Sequence[ImagePath], cores: int) -> list[Sequence[ImagePath]]:
    """Divide a batch into tasks, small enough that all cores are used."""
    size = min(TASK_IMAGES, -(-len(paths) // cores))
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _decode(
    paths: Sequence[ImagePath], decode: Decode
) -> list[NDArray[np.uint8] | UnreadableImages]:
    decoded: list[NDArray[np.uint8] | UnreadableImages] = []
    for path in paths:
        try:
            decoded.append(decode(open_image(path)))
        except UnreadableImages as error:
            decoded.append(error)
    return decoded


def _stack(tasks: Sequence[_Task]) -> Tensor:
    images: list[NDArray[np.uint8]] = []
    unreadable: list[str] = []
    for result in (result for task in tasks for result in task.result()):
        if isinstance(result, UnreadableImages):
            unreadable += result.images
        else:
            images.append(result)
    if unreadable:
        raise UnreadableImages(unreadable)
    return torch.from_numpy(np.stack(images))
