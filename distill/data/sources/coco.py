"""COCO exports: a JSON file with images, categories and annotations, whose boxes become crops.

Given as the file, or as a folder that has one in its split folders (`train/_annotations.coco.json`)
or in annotations/ (`instances_train2017.json`). Only then the names tell the splits.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from contract import first_error_line
from distill.data.sources.boxes import Box, Photo, cropped_images, existing
from distill.data.sources.folders import SPLIT_FOLDERS
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError

PATTERNS: Final = (
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "annotations/instances_*.json",
)
SAMPLED_BYTES: Final = 65_536  # of each end of a file
SECTIONS: Final = (b'"images"', b'"annotations"', b'"categories"')
FIELDS: Final = (b'"file_name"', b'"image_id"', b'"bbox"')  # of images and annotations
Id = int | str


class _Image(BaseModel):
    id: Id
    file_name: str
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]


class _Category(BaseModel):
    id: Id
    name: Annotated[str, Field(min_length=1)]


class _Annotation(BaseModel):
    image_id: Id
    category_id: Id
    bbox: list[float] = []  # left, top, width, height in pixels; empty without a box
    iscrowd: int = 0


class _Document(BaseModel):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


@dataclass(frozen=True)
class CocoExport:
    """One or several COCO files; `names_splits` where their names tell the split."""

    paths: tuple[Path, ...]
    names_splits: bool

    def images(self, cache: Path, progress: Progress | None = None) -> list[LabelledImage]:
        """The crops of all boxes, photo by photo."""
        return cropped_images(self, cache, progress)

    def files(self) -> Iterator[Path]:
        """The JSON files and all photos that they name."""
        yield from self.paths
        for photo in self._photos:
            yield photo.path

    def photos(self) -> tuple[Photo, ...]:
        """The photos in the order of the files."""
        return self._photos

    @cached_property
    def _photos(self) -> tuple[Photo, ...]:
        return tuple(photo for path in self.paths for photo in self._read(path))

    def _read(self, path: Path) -> Iterator[Photo]:
        document = _document(path)
        names = {category.id: category.name for category in document.categories}
        sizes = {image.id: (image.width, image.height) for image in document.images}
        boxes: dict[Id, list[Box]] = defaultdict(list)
        for number, annotation in enumerate(document.annotations):
            for name, value, known in (
                ("image_id", annotation.image_id, sizes),
                ("category_id", annotation.category_id, names),
            ):
                if value not in known:
                    raise DataError(
                        f"{path}, annotations.{number}: there is no {name} {value!r}: export again"
                    )
            box = _box(annotation, names[annotation.category_id], sizes[annotation.image_id])
            boxes[annotation.image_id].append(box)
        paths = {image.id: _photo_path(path, image.file_name) for image in document.images}
        existing(path, ((image.file_name, paths[image.id]) for image in document.images))
        split = _split_of(path) if self.names_splits else None
        for image in document.images:
            yield Photo(paths[image.id], split, tuple(boxes[image.id]), sizes[image.id])


def coco_files(folder: Path) -> tuple[Path, ...]:
    """The COCO files of a folder as labelling tools export it."""
    return tuple(sorted(path for pattern in PATTERNS for path in folder.glob(pattern)))


def looks_like_coco(path: str | Path) -> bool:
    """Whether a JSON file seems to be a COCO file, told from both of its ends.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        sample = file.read(SAMPLED_BYTES)
        file.seek(max(len(sample), os.fstat(file.fileno()).st_size - SAMPLED_BYTES))
        sample += file.read(SAMPLED_BYTES)
    return any(name in sample for name in SECTIONS) and any(name in sample for name in FIELDS)


def _document(path: Path) -> _Document:
    try:
        return _Document.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is no COCO export ({first_error_line(error)}): it needs images, categories "
            "and annotations with boxes"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from None


def _box(annotation: _Annotation, key: str, size: tuple[int, int]) -> Box:
    """The annotation's box; one of no size where it has none, which is skipped and counted."""
    bbox = annotation.bbox if len(annotation.bbox) == 4 else [0.0, 0.0, 0.0, 0.0]
    left, top, width, height = bbox
    return Box(
        key,
        left / size[0],
        top / size[1],
        (left + width) / size[0],
        (top + height) / size[1],
        bool(annotation.iscrowd),
    )


def _photo_path(path: Path, name: str) -> Path:
    """Where the photo `name` of the COCO file `path` lies: the first place where there is one."""
    name = name.replace("\\", "/")
    folders = [path.parent, path.parent / "images"]
    if path.parent.name == "annotations":
        root = path.parent.parent
        folders = [root / path.stem.removeprefix("instances_"), root / "images", root, *folders]
    candidates = [Path(os.path.normpath(folder / name)) for folder in folders]
    return next((found for found in candidates if found.is_file()), candidates[0])


def _split_of(path: Path) -> str | None:
    name = path.stem.lower().removeprefix("instances_").rstrip("0123456789").rstrip("-_.")
    return next(
        (split for split in (name, path.parent.name.lower()) if split in SPLIT_FOLDERS), None
    )
