"""An image file within a larger file: read in place, so that nothing has to be unpacked."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackedImage:
    """`size` bytes at `offset` of `file` (a tar or Arrow file), where it is called `name`."""

    file: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return str(self.file / self.name)

    def read_bytes(self) -> bytes:
        """The content of the image file.

        Raises:
            OSError: `file` cannot be read, or is shorter than when it was indexed.
        """
        with self.file.open("rb") as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) < self.size:
            raise OSError(0, "it has been cut off")
        return content


ImagePath = Path | PackedImage  # where the encoded bytes of one image are


def location(image: ImagePath) -> Path:
    """The path of the image; within the larger file, where it is packed."""
    return image if isinstance(image, Path) else image.file / image.name


def version(image: ImagePath) -> tuple[int, int]:
    """Size and modification time, which change when the image does.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(image, Path):
        stat = image.stat()
        return stat.st_size, stat.st_mtime_ns
    return image.size, image.file.stat().st_mtime_ns
