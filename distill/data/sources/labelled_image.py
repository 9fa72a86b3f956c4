"""What every source gives: images on disk, each with its class and, where known, its split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class LabelledImage:
    """One image of class `key`; `split` is as the source names it, None where it names none.

    `photo` is the photo that the image was cut out of, None where it is a photo itself.
    """

    split: str | None
    key: str
    path: Path
    photo: str | None = None


class Source(Protocol):
    """A data set in one layout."""

    def images(self, cache: Path) -> Iterable[LabelledImage]:
        """All images, in an order that only the content decides.

        Images that are not files of their own are written to the folder `cache` once.

        Raises:
            DataError: the source is malformed, empty or cannot be read.
        """
        ...
