"""Finds photos by file, folder or pattern, and reads them from standard input."""

import glob
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from contract import IMAGE_SUFFIXES
from distill.data.files.image_file import open_image
from distill.data.sources.folders import image_files
from distill.errors import DataError

STDIN: Final = "-"


@dataclass(frozen=True)
class Photo:
    """A photo to classify: a file, or bytes from standard input."""

    name: str
    content: bytes | None = None

    def open(self) -> Image.Image:
        """The photo in RGB.

        Raises:
            UnreadableImages: it is missing, truncated, too large or not an image.
        """
        if self.content is None:
            return open_image(Path(self.name))
        return open_image(io.BytesIO(self.content), self.name)


def printable(name: str) -> str:
    """`name`, with bytes of a file name that are not UTF-8 replaced, so that it can be written."""
    return os.fsencode(name).decode(errors="replace")


def find_photos(arguments: Sequence[str]) -> list[Photo]:
    """The photos that `arguments` name, each once, in their order.

    A folder means all images below it, a pattern (`*`, `?`, `**`) all images that it matches, and
    `-` standard input: one photo, or file names, one per line.

    Raises:
        DataError: an argument is empty, a folder or a pattern has no image, or standard input has
            neither.
    """
    photos = (photo for argument in arguments for photo in _photos_of(argument))
    return list(dict.fromkeys(photos))


def missing_files(photos: Sequence[Photo]) -> list[str]:
    """The names of photos whose file does not exist."""
    return [
        photo.name
        for photo in photos
        if photo.content is None and not os.path.exists(photo.name)  # noqa: PTH110
    ]


def _photos_of(argument: str) -> Iterator[Photo]:
    if not argument:
        raise DataError('an argument for photos is empty: for the current folder, write "."')
    # The functions of os.path return False for a name that is too long; those of Path raise.
    if argument == STDIN:
        yield from _from_stdin(sys.stdin.buffer.read())
    elif os.path.isdir(argument):  # noqa: PTH112
        yield from _images(image_files(Path(argument)), f"the folder {argument}")
    elif not os.path.exists(argument) and glob.has_magic(argument):  # noqa: PTH110
        matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
        yield from _images(matches, f"the pattern {argument}")
    else:
        yield Photo(argument)


def _images(paths: Sequence[Path], source: str) -> Iterator[Photo]:
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    if not images:
        raise DataError(f"{source} has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    yield from (Photo(str(path)) for path in images)


def _from_stdin(content: bytes) -> Iterator[Photo]:
    if _is_image(content):
        yield Photo("standard input", content)
        return
    names = [line.strip() for line in os.fsdecode(content).splitlines()]
    if not any(names) or "\0" in names[0]:
        raise DataError("standard input is neither a photo nor a list of files, one per line")
    yield from (Photo(name) for name in names if name)


def _is_image(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:  # reported when the photo is opened
        return True
