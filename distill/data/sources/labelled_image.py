"""What every source gives: encoded images, each with its class and, where known, its split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distill.data.files.packed_image import ImagePath


@dataclass(frozen=True)
class LabelledImage:
    """One image of class `key`; `split` is as the source names it, None where it names none.

    `photo` is the photo that the image was cut out of, None where it is a photo itself.
    """

    split: str | None
    key: str
    path: ImagePath
    photo: str | None = None


class Source(Protocol):
    """A data set in one layout."""

    def images(self, cache: Path) -> Iterable[LabelledImage]:
        """All images, in an order that only the content decides.

        Images that cannot be read where they are are written to the folder `cache` once; so is
        what tells where they are.

        Raises:
            DataError: the source is malformed, empty or cannot be read.
        """
        ...
