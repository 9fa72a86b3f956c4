"""Cache of images that are not separate files in their source.

A file is named by the hash of its content and its time is 0, so that features computed from it are
still valid after the image cache was deleted and rebuilt.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError, Interrupted, UnreadableImages

INDEX: Final = "index.jsonl"
UNITS_DONE: Final = "units-done"  # a file of an interrupted store
VERSION: Final = "2"  # of the index


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file with its split and class."""

    split: str | None
    key: str
    name: str  # in the source; determines the suffix
    content: bytes
    photo: str | None = None  # the photo that the image is a crop of


# The images of each unit (a photo, a row) from a number on, or why it cannot be read.
ReadUnits = Callable[[int], Iterator[Sequence[EncodedImage] | UnreadableImages]]


def files_identity(paths: Iterable[Path]) -> list[str]:
    """Path, size and modification time of each file, which identify the content of a store."""
    stats = [(path, path.stat()) for path in paths]
    return [f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]


def stored_images(
    cache: Path,
    identity: Iterable[str],
    units: int,
    read: ReadUnits,
    progress: Progress | None = None,
) -> list[LabelledImage]:
    """The images of the `units` units of a source, as files below `cache`.

    `read` is called only once per `identity`. If `progress` raises Interrupted, what is stored is
    kept, and the next call continues with the next unit.

    Raises:
        UnreadableImages: lists all units that cannot be read.
        DataError: the cache cannot be written. Also what `read` raises.
    """
    name = hashlib.sha256("\n".join([VERSION, *identity]).encode()).hexdigest()[:24]
    folder = cache / "sources" / name
    if not (folder / INDEX).is_file():
        interrupted = folder.with_name(f"{name}.interrupted")
        partial = folder.with_name(f"{name}.{secrets.token_hex(4)}.partial")
        try:
            _take_over(interrupted, partial)
            _write(partial, units, read, progress)
            if not (folder / INDEX).is_file():  # another process may have been faster
                partial.replace(folder)
        except Interrupted:
            if (partial / UNITS_DONE).is_file():
                with suppress(OSError):  # another process was interrupted, too
                    partial.rename(interrupted)
                raise Interrupted("unpacked images are kept") from None
            raise
        except OSError as error:
            raise DataError(
                f"cannot write the images to {folder} ({error.strerror}): free some space or "
                "choose another cache folder"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return [
        LabelledImage(split, key, folder / file, photo)
        for split, key, file, photo in _read_index(folder)
    ]


def _take_over(interrupted: Path, partial: Path) -> None:
    """Rename `interrupted`, so that no other process continues it, or create an empty folder."""
    try:
        interrupted.rename(partial)
    except FileNotFoundError:
        partial.mkdir(parents=True)


def _write(folder: Path, units: int, read: ReadUnits, progress: Progress | None) -> None:
    """Write the images of all units, or of those that an interrupted call left."""
    start, numbers = _resume(folder)
    unreadable: list[str] = []
    with (folder / INDEX).open("a", encoding="utf-8") as index:
        for done, images in enumerate(read(start), start + 1):
            if isinstance(images, UnreadableImages):
                unreadable += images.images
            else:
                for image in images:
                    file = _write_image(folder, image, numbers)
                    print(json.dumps([image.split, image.key, file, image.photo]), file=index)
            if progress is None:
                continue
            try:
                progress(done, units)
            except Interrupted:
                if not unreadable:  # otherwise the next call could not name them
                    (folder / UNITS_DONE).write_text(str(done))
                raise
    if unreadable:
        raise UnreadableImages(unreadable)


def _resume(folder: Path) -> tuple[int, dict[str, int]]:
    """How many units an interrupted call has written, and the number of each class's folder."""
    numbers: dict[str, int] = {}  # a key may not be a valid file name
    if not (folder / UNITS_DONE).is_file():
        return 0, numbers
    for _, key, _, _ in _read_index(folder):
        numbers.setdefault(key, len(numbers))
    done = int((folder / UNITS_DONE).read_text())
    (folder / UNITS_DONE).unlink()
    return done, numbers


def _read_index(folder: Path) -> Iterator[list[str]]:
    return map(json.loads, (folder / INDEX).read_text(encoding="utf-8").splitlines())


def _write_image(folder: Path, image: EncodedImage, numbers: dict[str, int]) -> str:
    """Write an image into the folder of its class, and give its path within `folder`."""
    number = numbers.setdefault(image.key, len(numbers))
    suffix = Path(image.name).suffix.lower()
    digest = hashlib.sha256(image.content).hexdigest()[:24]
    file = f"{number}/{digest}{suffix if suffix in IMAGE_SUFFIXES else '.png'}"
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image.content)
    os.utime(path, (0, 0))
    return file
