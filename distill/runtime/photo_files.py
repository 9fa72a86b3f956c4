"""Which photos are meant: files, folders, patterns and standard input."""

import glob
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from contract import IMAGE_SUFFIXES
from distill.data.files.image_file import open_image
from distill.errors import DataError

STDIN: Final = "-"


@dataclass(frozen=True)
class Photo:
    """A photo that was asked for: a file, or bytes that came by standard input."""

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


def find_photos(arguments: Sequence[str]) -> list[Photo]:
    """The photos that `arguments` name, each once, in their order.

    A folder stands for all images below it, a pattern (`*`, `?`, `**`) for what it matches, and
    `-` for standard input: one photo, or the names of files, one a line.

    Raises:
        DataError: a folder or a pattern has no image, or nothing came by standard input.
    """
    found = [photo for argument in arguments for photo in _photos_of(argument)]
    return list(dict.fromkeys(found))


def _photos_of(argument: str) -> Iterator[Photo]:
    path = Path(argument)
    if argument == STDIN:
        yield from _from_stdin(sys.stdin.buffer.read())
    elif path.is_dir():
        yield from _images(sorted(path.rglob("*")), f"the folder {argument}")
    elif not path.exists() and glob.has_magic(argument):
        matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
        yield from _images(matches, f"the pattern {argument}")
    else:
        yield Photo(argument)


def _images(paths: Sequence[Path], what: str) -> Iterator[Photo]:
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    if not images:
        raise DataError(f"{what} has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    yield from (Photo(str(path)) for path in images)


def _from_stdin(content: bytes) -> Iterator[Photo]:
    if _is_image(content):
        yield Photo("standard input", content)
        return
    names = [line.strip() for line in content.decode(errors="replace").splitlines()]
    if not any(names) or "\0" in names[0]:
        raise DataError("standard input is neither a photo nor a list of files, one a line")
    yield from (Photo(name) for name in names if name)


def _is_image(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:  # opening the photo says so
        return True
