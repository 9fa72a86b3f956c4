"""YOLO exports: data.yaml, photos, and a text file with the boxes of each photo.

A line of labels/NAME.txt is `class x y width height`, relative to the size of the photo, where x
and y are the centre; or `class x1 y1 x2 y2 …`, the corners of a polygon or of a rotated box.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from contract import error_line, first_error_line
from distill.data.sources.boxes import Box, Photo, cropped_images, existing
from distill.data.sources.folders import image_files
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError

FILES: Final = ("data.yaml", "data.yml")
SUFFIXES: Final = (".yaml", ".yml")
LINE: Final = "`class x y width height`, relative to the photo"


def _by_number(names: object) -> object:
    return dict(enumerate(names)) if isinstance(names, list) else names


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [] if value is None else [value]


Paths = Annotated[list[str], BeforeValidator(_as_list)]


class _DataFile(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    path: str = ""  # root of the data, relative to the folder of the file
    train: Paths = []
    val: Paths = []
    test: Paths = []
    names: Annotated[dict[int, str], BeforeValidator(_by_number)]
    kpt_shape: list[int] | None = None  # key points follow the box


@dataclass(frozen=True)
class YoloExport:
    """A data.yaml, which has folders or lists of photos for each split."""

    path: Path

    def images(self, cache: Path, progress: Progress | None = None) -> list[LabelledImage]:
        """The crops of all boxes, photo by photo."""
        return cropped_images(self, cache, progress)

    def files(self) -> Iterator[Path]:
        """The data.yaml, the photos, and their label files."""
        yield self.path
        for _, photo in self._photo_files():
            yield photo
            if (labels := _labels_path(photo)).is_file():
                yield labels

    def photos(self) -> Iterator[Photo]:
        """The photos by split, sorted by name."""
        for split, photo in self._photo_files():
            yield Photo(photo, split, tuple(self._boxes(_labels_path(photo))))

    @cached_property
    def _data(self) -> _DataFile:
        try:
            return _DataFile.model_validate(yaml.safe_load(self.path.read_bytes()))
        except ValidationError as error:
            reason = first_error_line(error)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = error_line(error)
        except OSError as error:
            raise DataError(f"cannot read {self.path} ({error.strerror})") from None
        raise DataError(
            f"{self.path} does not describe a YOLO export ({reason}): it needs names, and train or "
            "val with folders of photos"
        )

    def _photo_files(self) -> Iterator[tuple[str, Path]]:
        """Each photo with its split."""
        count = 0
        for split in ("train", "val", "test"):
            for name in getattr(self._data, split):
                path = self._find(split, name)
                for photo in image_files(path) if path.is_dir() else self._listed(path):
                    count += 1
                    yield split, photo
        if not count:
            raise DataError(f"{self.path} has no photos: give their folders as train and val")

    def _find(self, split: str, name: str) -> Path:
        """The path of the folder or list `name`; some tools write it relative to a subfolder."""
        parent = self.path.parent
        folders = dict.fromkeys((parent / self._data.path, parent))
        for folder in folders:
            for variant in dict.fromkeys((name, name.removeprefix("../"))):
                path = Path(os.path.normpath(folder / variant))
                if path.exists():
                    return path
        raise DataError(
            f"{self.path} has {split}: {name}, which does not exist: correct or remove it"
        )

    def _listed(self, file: Path) -> list[Path]:
        """The photos listed in a text file, one per line, relative to its folder."""
        try:
            names = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise DataError(f"{file} is neither a folder nor a list of photos") from None
        names = [name.strip() for name in names if name.strip()]
        photos = [Path(os.path.normpath(file.parent / name)) for name in names]
        existing(file, zip(names, photos, strict=True))
        return photos

    def _boxes(self, path: Path) -> Iterator[Box]:
        """The boxes in the label file `path`; none if it does not exist."""
        if not path.is_file():
            return
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise DataError(f"cannot read the labels {path}: export again") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield self._box(f"{path}, line {number}", line.split())

    def _box(self, line: str, fields: list[str]) -> Box:
        try:
            index = int(fields[0])
            values = [float(field) for field in fields[1:]]
        except ValueError:
            values = []
        if self._data.kpt_shape is not None:
            values = values[:4]
        if len(values) < 4 or len(values) % 2:
            raise DataError(f"{line}: expected {LINE}, found {' '.join(fields)[:80]!r}")
        if index not in self._data.names:
            raise DataError(f"{line}: {self.path} has no name for the class {index}: add it")
        if len(values) == 4:
            x, y, width, height = values
            across, down = (x - width / 2, x + width / 2), (y - height / 2, y + height / 2)
        else:
            across = min(values[::2]), max(values[::2])
            down = min(values[1::2]), max(values[1::2])
        return Box(self._data.names[index], across[0], down[0], across[1], down[1])


def data_file(folder: Path) -> Path | None:
    """The data.yaml of a folder, if it has one."""
    return next((path for name in FILES if (path := folder / name).is_file()), None)


def _labels_path(photo: Path) -> Path:
    """…/images/…/NAME.jpg → …/labels/…/NAME.txt; next to the photo if there is no images/."""
    parts = list(photo.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
