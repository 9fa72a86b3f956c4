"""WebDataset shards: tar files with pairs of NAME.jpg and NAME.cls or NAME.json.

- The format is a tar file with a naming rule, so Python's tarfile reads it; the package
  `webdataset` is mainly a training loader, which is not needed.
- A member of a tar file is contiguous, so a cached index of all offsets gives random access without
  unpacking.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES, is_hidden
from distill.data.files.atomic_file import atomic_file
from distill.data.files.packed_image import PackedImage
from distill.data.sources.folders import SPLIT_FOLDERS
from distill.data.sources.image_store import files_identity
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError

LABEL_FIELDS: Final = ("label", "class", "cls", "key")  # of a sample's JSON; the first is used


@dataclass(frozen=True)
class Shards:
    """Tar files. A shard named train-0000.tar, or in a folder train/, is of the split train."""

    paths: tuple[Path, ...]

    def images(self, cache: Path, progress: Progress | None = None) -> list[LabelledImage]:
        """The images of all shards, in order."""
        name = hashlib.sha256("\n".join(files_identity(self.paths)).encode()).hexdigest()[:24]
        index = cache / "sources" / f"{name}.jsonl"
        if not index.is_file():
            self._write_index(index, progress)
        images = []
        with index.open(encoding="utf-8") as file:
            for number, offset, size, member, key in map(json.loads, file):
                path = self.paths[number]
                image = PackedImage(path, offset, size, member)
                images.append(LabelledImage(_split_of(path), key, image))
        return images

    def _write_index(self, index: Path, progress: Progress | None) -> None:
        """Write shard number, offset, size, name and label of each image, one per line."""
        try:
            with atomic_file(index) as file:
                for number, path in enumerate(self.paths):
                    for image, key in _read_shard(path):
                        row = (number, image.offset, image.size, image.name, key)
                        file.write(f"{json.dumps(row)}\n".encode())
                    if progress:
                        progress(number + 1, len(self.paths))
        except OSError as error:
            raise DataError(
                f"cannot write the index {index} ({error.strerror}): free some space or choose "
                "another cache folder"
            ) from None


def shard_paths(folder: Path) -> tuple[Path, ...]:
    """The tar files in `folder` and in its split folders."""
    paths = [*folder.glob("*.tar"), *folder.glob("*/*.tar")]
    depth = len(folder.parts)
    return tuple(sorted(path for path in paths if not any(map(is_hidden, path.parts[depth:]))))


def _read_shard(path: Path) -> Iterator[tuple[PackedImage, str]]:
    """The images of one shard with their labels."""
    try:
        with tarfile.open(path, "r:") as shard:  # compressed files have no random access
            yield from _samples(path, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"cannot read the shard {path} ({reason})") from None


def _samples(path: Path, shard: tarfile.TarFile) -> Iterator[tuple[PackedImage, str]]:
    """The images of an open shard; the files of a sample follow each other."""
    files: dict[str, tarfile.TarInfo] = {}  # of the current sample, by suffix
    current = ""
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined] # tarfile would keep all in memory
        if not member.isreg():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem:  # a hidden file such as .DS_Store
            continue
        name = f"{folder}/{stem}"
        if name != current and files:
            yield _sample(path, shard, current, files)
            files = {}
        current = name
        files[f".{suffix.lower()}"] = member
    if files:
        yield _sample(path, shard, current, files)


def _sample(
    path: Path, shard: tarfile.TarFile, name: str, files: dict[str, tarfile.TarInfo]
) -> tuple[PackedImage, str]:
    sample = f"{path}, sample {name.lstrip('/')!r}"
    image = next((files[suffix] for suffix in files if suffix in IMAGE_SUFFIXES), None)
    if image is None:
        raise DataError(
            f"{sample} has no image (it has {', '.join(files)}): export the shard again"
        )

    def content(suffix: str) -> bytes:
        file = shard.extractfile(files[suffix])
        return file.read() if file else b""

    key = ""
    try:
        if ".cls" in files:
            key = content(".cls").decode().strip()
        elif ".json" in files:
            document = json.loads(content(".json"))
            key = str(next(document[field] for field in LABEL_FIELDS if field in document))
    except (ValueError, TypeError, StopIteration):
        key = ""
    if not key:
        raise DataError(
            f"{sample} has no label: put its class in NAME.cls, or in the field label of NAME.json"
        )
    return PackedImage(path, image.offset_data, image.size, image.name), key


def _split_of(path: Path) -> str | None:
    names = (path.stem.lower().rstrip("0123456789").rstrip("-_."), path.parent.name.lower())
    return next((name for name in names if name in SPLIT_FOLDERS), None)
