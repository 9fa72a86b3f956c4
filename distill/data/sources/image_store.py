"""Cache of images that are not separate files in their source.

A file is named by the hash of its content and its time is 0, so that features computed from it are
still valid after the image cache was deleted and rebuilt.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES
from distill.data.sources.labelled_image import LabelledImage
from distill.errors import DataError

INDEX: Final = "index.jsonl"
VERSION: Final = "2"  # of the index


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file with its split and class."""

    split: str | None
    key: str
    name: str  # in the source; determines the suffix
    content: bytes
    photo: str | None = None  # the photo that the image is a crop of


def files_identity(paths: Iterable[Path]) -> list[str]:
    """Path, size and modification time of each file, which identify the content of a store."""
    stats = [(path, path.stat()) for path in paths]
    return [f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]


def stored_images(
    cache: Path, identity: Iterable[str], read: Callable[[], Iterable[EncodedImage]]
) -> list[LabelledImage]:
    """The images of `read` as files below `cache`; `read` is called only once per `identity`.

    Raises:
        DataError: the cache cannot be written.
    """
    name = hashlib.sha256("\n".join([VERSION, *identity]).encode()).hexdigest()[:24]
    folder = cache / "sources" / name
    if not (folder / INDEX).is_file():
        partial = folder.with_name(f"{name}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir(parents=True)
            _write(partial, read())
            if not (folder / INDEX).is_file():  # another process may have been faster
                partial.replace(folder)
        except OSError as error:
            raise DataError(
                f"cannot write the images to {folder} ({error.strerror}): free some space or "
                "choose another cache folder"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [LabelledImage(split, key, folder / file, photo) for split, key, file, photo in rows]


def _write(folder: Path, images: Iterable[EncodedImage]) -> None:
    numbers: dict[str, int] = {}  # folder of each class: a key may not be a valid file name
    with (folder / INDEX).open("w", encoding="utf-8") as index:
        for image in images:
            number = numbers.setdefault(image.key, len(numbers))
            suffix = Path(image.name).suffix.lower()
            digest = hashlib.sha256(image.content).hexdigest()[:24]
            file = f"{number}/{digest}{suffix if suffix in IMAGE_SUFFIXES else '.png'}"
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(image.content)
            os.utime(path, (0, 0))
            print(json.dumps([image.split, image.key, file, image.photo]), file=index)
