"""Streamed pixels: images decoded from their files at each use.

For splits whose decoded pixels are too large to cache. The pixels equal those of `load_pixels`.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from distill.data.files.image_file import square
from distill.data.files.packed_image import ImagePath
from distill.data.read_ahead import decode_ahead
from distill.data.to_device import to_device


class StreamedPixels:
    """Images of files as uint8 [images, 3, size, size], decoded when indexed.

    Indexed like a tensor, by a tensor of row numbers, a mask or a slice.
    """

    def __init__(self, paths: Sequence[ImagePath], size: int) -> None:
        self._paths = paths
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[images, 3, size, size]."""
        return len(self), 3, self._size, self._size

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Decode the images of `rows`.

        Raises:
            UnreadableImages: images cannot be read; lists all of them.
        """
        chosen = torch.arange(len(self))[rows]
        if not len(chosen):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return next(self.batches([chosen]))

    def select(self, rows: Tensor) -> "StreamedPixels":
        """The images of `rows` (indices or a mask), which are decoded when these are indexed."""
        chosen = torch.arange(len(self))[rows].tolist()
        return StreamedPixels([self._paths[row] for row in chosen], self._size)

    def batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of row numbers, prefetched.

        Raises:
            UnreadableImages: images cannot be read; lists those of the batch.
        """
        paths = ([self._paths[row] for row in rows.tolist()] for rows in batches)
        return decode_ahead(paths, lambda image: square(image, self._size))


Pixels = Tensor | StreamedPixels  # uint8 [images, 3, size, size]


def select_rows(pixels: Pixels, rows: Tensor) -> Pixels:
    """The images of `rows` (indices or a mask); streamed ones are not decoded yet."""
    return pixels[rows] if isinstance(pixels, Tensor) else pixels.select(rows)


def read_batches(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of each batch of row numbers, on the device of `pixels` (streamed: CPU)."""
    if isinstance(pixels, Tensor):
        return (pixels[to_device(rows, pixels.device)] for rows in batches)
    return pixels.batches(batches)


def read_in_order(pixels: Pixels, size: int) -> Iterator[Tensor]:
    """All images in batches of `size`."""
    if isinstance(pixels, Tensor):
        return iter(torch.split(pixels, size))
    return pixels.batches(torch.split(torch.arange(len(pixels)), size))
