"""The interface of sources: encoded images with class and, if known, split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distill.data.files.packed_image import ImagePath

Progress = Callable[[int, int], None]  # done, total; what it raises ends the work


@dataclass(frozen=True)
class LabelledImage:
    """An image of class `key`; `split` is the name in the source, None without one.

    `photo` is the photo that the image is a crop of, None if it is not a crop.
    """

    split: str | None
    key: str
    path: ImagePath
    photo: str | None = None


class Source(Protocol):
    """A data set in one layout."""

    def images(self, cache: Path, progress: Progress | None = None) -> Iterable[LabelledImage]:
        """All images, in a deterministic order.

        Images that cannot be read in place, and indices of packed images, are cached in the folder
        `cache`; `progress` is called while they are written.

        Raises:
            DataError: the source is malformed, empty or cannot be read.
        """
        ...
