"""WebDataset shards: tar files in which NAME.jpg lies beside NAME.cls or NAME.json.

Notable: the format is a tar file with a naming rule, so Python's tarfile reads it; the package
`webdataset` is a training loader, of which nothing else would be used. Shards are read in order,
one image in memory at a time.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES
from distill.data.sources.folders import SPLIT_FOLDERS
from distill.data.sources.image_store import EncodedImage, files_identity, stored_images
from distill.data.sources.labelled_image import LabelledImage
from distill.errors import DataError

LABEL_FIELDS: Final = ("label", "class", "cls", "key")  # of a sample's JSON, the first there is


@dataclass(frozen=True)
class Shards:
    """Tar files. A shard called train-0000.tar, or in a folder train/, is of the split train."""

    paths: tuple[Path, ...]

    def images(self, cache: Path) -> list[LabelledImage]:
        """The images of all shards, in their order."""
        return stored_images(cache, files_identity(self.paths), self._samples)

    def _samples(self) -> Iterator[EncodedImage]:
        for path in self.paths:
            try:
                with tarfile.open(path) as shard:
                    yield from _samples(path, shard)
            except (tarfile.TarError, OSError, EOFError) as error:
                reason = " ".join(str(error).split())[:100]
                raise DataError(f"cannot read the shard {path} ({reason})") from None


def shard_paths(folder: Path) -> tuple[Path, ...]:
    """The tar files in `folder` and in its split folders."""
    return tuple(sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")]))


def _samples(path: Path, shard: tarfile.TarFile) -> Iterator[EncodedImage]:
    """The images of one shard; the files of a sample follow each other."""
    files: dict[str, bytes] = {}  # of the current sample, by suffix
    current = ""
    for member in shard:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem:  # such as .DS_Store
            continue
        name = f"{folder}/{stem}"
        if name != current and files:
            yield _sample(path, current, files)
            files = {}
        current = name
        if content := shard.extractfile(member):
            files[f".{suffix.lower()}"] = content.read()
    if files:
        yield _sample(path, current, files)


def _sample(path: Path, name: str, files: dict[str, bytes]) -> EncodedImage:
    where = f"{path}, sample {name.lstrip('/')!r}"
    image = next((suffix for suffix in files if suffix in IMAGE_SUFFIXES), None)
    if image is None:
        raise DataError(f"{where} has no image (it has {', '.join(files)})")
    key = ""
    try:
        if ".cls" in files:
            key = files[".cls"].decode().strip()
        elif ".json" in files:
            document = json.loads(files[".json"])
            key = str(next(document[field] for field in LABEL_FIELDS if field in document))
    except (ValueError, TypeError, StopIteration):
        key = ""
    if not key:
        raise DataError(
            f"{where} has no label: put its class in NAME.cls, or in the field label of NAME.json"
        )
    return EncodedImage(_split_of(path), key, image, files[image])


def _split_of(path: Path) -> str | None:
    names = (path.stem.lower().rstrip("0123456789").rstrip("-_."), path.parent.name.lower())
    return next((name for name in names if name in SPLIT_FOLDERS), None)
