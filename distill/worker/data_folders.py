"""The data sets below a worker's data roots, counted without decoding anything.

Notable:
- Of a JSON file, both ends tell whether it is a COCO file. Folders with many of them are left out:
  labelling tools write one for each photo.
- A folder is listed again only when it has changed: a second pass costs one `stat` a folder.
- A pass ends after SCAN_SECONDS, so that a slow network disk delays nothing. The next pass goes on
  with what is not known yet.
- Links are not followed: what they lead to may be outside the roots.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from contract import IMAGE_SUFFIXES, DataFolder, is_hidden
from distill.data.sources.coco import PATTERNS, coco_files, looks_like_coco
from distill.data.sources.folders import SPLIT_FOLDERS
from distill.data.sources.hugging_face import FILES as HUGGING_FACE_FILES
from distill.data.sources.manifest_file import SUFFIXES as LIST_SUFFIXES
from distill.data.sources.yolo import FILES as YOLO_FILES

SCAN_SECONDS: Final = 5.0
MAX_DEPTH: Final = 3  # folders between a root and a data set
MAX_FOUND: Final = 200  # data sets, and weight files
MAX_JSON_FILES: Final = 20  # of a folder whose JSON files are looked into
SAMPLED_FOLDERS: Final = 20  # that tell class folders from other folders
TEACHER_CONFIG: Final = "open_clip_config.json"
RUN_FILES: Final = frozenset({"checkpoint.safetensors", "report.json", "job.json"})
STUDENT: Final = "student.safetensors"
COCO_FILE: Final = PATTERNS[0]
COCO_EXPORT: Final = "COCO export"
CACHED: Final = ("features-", "text-bank-")  # how files of a cache begin


@dataclass(frozen=True)
class _Listing:
    """What lies directly in a folder, without hidden files. `files` are not images.

    `coco`: those of `files` that are COCO files.
    """

    modified_ns: int
    folders: tuple[str, ...]
    files: tuple[str, ...]
    images: int
    coco: tuple[str, ...]


@dataclass
class Found:
    """What lies below the roots. `complete`: False if a pass ended before all was looked at."""

    data: list[DataFolder] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)  # as `teacher` of a configuration
    weights: list[str] = field(default_factory=list)
    complete: bool = True


class DataScan:
    """Finds data sets below `roots`; remembers what it has listed."""

    def __init__(self, roots: Sequence[Path], seconds: float = SCAN_SECONDS) -> None:
        self._roots, self._seconds = tuple(roots), seconds
        self._known: dict[str, _Listing] = {}
        self._deadline = 0.0
        self._skipped = 0  # folders that this pass had no time for

    def find(self) -> Found:
        """One pass over the roots."""
        self._deadline, self._skipped = time.monotonic() + self._seconds, 0
        found = Found()
        folders = deque((str(root), 0) for root in self._roots)
        while folders and len(found.data) < MAX_FOUND:
            path, depth = folders.popleft()
            listing = self._list(path)
            if listing is None:
                continue
            if data := self._as_data(path, listing):
                found.data.append(data)
                if data.kind != COCO_EXPORT:
                    found.data.extend(_coco_files(path, listing))
                continue
            _add_files(found, path, listing)
            if depth < MAX_DEPTH:
                folders.extend((f"{path}/{name}", depth + 1) for name in listing.folders)
        found.complete = not folders and not self._skipped
        return found

    def _as_data(self, path: str, listing: _Listing) -> DataFolder | None:
        """The data set that this folder is, by the rules of `distill.data.sources.find`."""
        if any(name in listing.files for name in HUGGING_FACE_FILES):
            return DataFolder(path=path, kind="Hugging Face dataset")
        if any(name in listing.files for name in YOLO_FILES):
            return DataFolder(path=path, kind="YOLO export")
        around = {"annotations", COCO_FILE, *SPLIT_FOLDERS}  # one of them lies in such an export
        if not around.isdisjoint((*listing.folders, *listing.files)) and coco_files(Path(path)):
            return DataFolder(path=path, kind=COCO_EXPORT)
        if any(name.endswith(".tar") for name in listing.files):
            return DataFolder(path=path, kind="shards")
        splits = {
            split: inner
            for split in SPLIT_FOLDERS
            if split in listing.folders
            and (inner := self._list(f"{path}/{split}")) is not None
            and inner.folders
        }
        before = self._skipped
        if splits:
            images = {split: self._count(f"{path}/{split}") for split in splits}
            classes = len(next(iter(splits.values())).folders)
        elif self._holds_classes(path, listing):
            images, classes = {"train": self._count(path)}, len(listing.folders)
        else:
            return None
        return DataFolder(
            path=path,
            kind="split folders" if splits else "class folders",
            classes=classes,
            images=images,
            complete=self._skipped == before,
        )

    def _holds_classes(self, path: str, listing: _Listing) -> bool:
        """Whether most of the folders in this one hold images themselves."""
        sampled = listing.folders[:SAMPLED_FOLDERS]
        inner = [self._list(f"{path}/{name}") for name in sampled]
        with_images = sum(each is not None and each.images > 0 for each in inner)
        return len(listing.folders) > 1 and 2 * with_images >= len(sampled)

    def _count(self, path: str) -> int:
        """The images anywhere below a folder, as far as there is time."""
        total, folders = 0, [path]
        while folders:
            folder = folders.pop()
            if (listing := self._list(folder)) is not None:
                total += listing.images
                folders.extend(f"{folder}/{name}" for name in listing.folders)
        return total

    def _list(self, path: str) -> _Listing | None:
        """What lies in a folder; None where it cannot be read, or where there is no time."""
        if time.monotonic() > self._deadline:
            self._skipped += 1
            return None
        try:
            modified = os.stat(path).st_mtime_ns  # noqa: PTH116 - a million of them
            known = self._known.get(path)
            if known is None or known.modified_ns != modified:
                known = self._known[path] = _read(path, modified)
        except OSError:
            self._known.pop(path, None)
            return None
        return known


def _read(path: str, modified_ns: int) -> _Listing:
    folders: list[str] = []
    files: list[str] = []
    images = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                images += 1
            elif len(files) < MAX_FOUND:
                files.append(entry.name)
    files.sort()
    coco = tuple(_which_are_coco(path, files))
    return _Listing(modified_ns, tuple(sorted(folders)), tuple(files), images, coco)


def _which_are_coco(path: str, files: Sequence[str]) -> Iterator[str]:
    documents = [name for name in files if name.lower().endswith(".json")]
    for name in documents if len(documents) <= MAX_JSON_FILES else ():
        with suppress(OSError):
            if looks_like_coco(f"{path}/{name}"):
                yield name


def _add_files(found: Found, path: str, listing: _Listing) -> None:
    """Add the lists, the teacher and the weight files that lie directly in a folder."""
    if TEACHER_CONFIG in listing.files:
        found.teachers.append(f"local-dir:{path}")
        return
    files = set(listing.files)
    if files & RUN_FILES:  # of a training run the student alone is of use to others
        files &= {STUDENT}
    else:
        found.data.extend(_lists(path, listing))
    weights = (
        f"{path}/{name}"
        for name in sorted(files)
        if name.endswith(".safetensors") and not name.startswith(CACHED)
    )
    found.weights.extend(list(weights)[: MAX_FOUND - len(found.weights)])


def _lists(path: str, listing: _Listing) -> Iterator[DataFolder]:
    for name in listing.files:
        if name.lower().endswith(LIST_SUFFIXES):
            yield DataFolder(path=f"{path}/{name}", kind="list")
    yield from _coco_files(path, listing)


def _coco_files(path: str, listing: _Listing) -> Iterator[DataFolder]:
    return (DataFolder(path=f"{path}/{name}", kind=COCO_EXPORT) for name in listing.coco)
