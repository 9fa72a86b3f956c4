"""Crops the bounding boxes of objects in photos, to use them as separate images.

- A crop is square where the photo allows it, since a student gets the centre square of an image and
  would see only the middle of a tall box.
- Crops are stored losslessly, so that cropping changes no pixel of an object.
- The formats are read by our own modules: pycocotools reads only COCO, prints output and raises
  KeyError for malformed files; labelformat and globox drop `iscrowd`; supervision and ultralytics
  need OpenCV.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from PIL import Image

from distill.data.files.image_file import DECODING, open_image
from distill.data.sources.image_store import EncodedImage, files_identity, stored_images
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError, UnreadableImages, some

MARGIN: Final = 0.1  # added on each side, relative to the longer side of the box
MIN_SIDE: Final = 16  # pixels; a box with a shorter side is skipped
ASPECT_TOLERANCE: Final = 0.02  # relative; annotated sizes may be rounded

CROWD: Final = "groups of objects (iscrowd)"
EMPTY: Final = "empty or outside of the photo"
SMALL: Final = f"smaller than {MIN_SIDE} px"
OTHER_SHAPE: Final = "in a photo of another shape than annotated"


@dataclass(frozen=True)
class Box:
    """A bounding box of an object of class `key`, relative to the photo's width and height."""

    key: str
    left: float
    top: float
    right: float
    bottom: float
    is_crowd: bool = False


@dataclass(frozen=True)
class Photo:
    """A photo and its boxes. `size` is its width and height, if the export has them."""

    path: Path
    split: str | None
    boxes: tuple[Box, ...]
    size: tuple[int, int] | None = None


class BoxExport(Protocol):
    """A data set of photos with boxes."""

    def files(self) -> Iterable[Path]:
        """All files that are read: annotations and photos.

        Raises:
            DataError: the annotations are malformed, or a file is missing.
        """
        ...

    def photos(self) -> Iterable[Photo]:
        """The photos in a deterministic order.

        Raises:
            DataError: as in `files`.
        """
        ...


def cropped_images(
    export: BoxExport, cache: Path, progress: Progress | None = None
) -> list[LabelledImage]:
    """The crops of all boxes of `export`, cached in the folder `cache`.

    `progress` is called after each photo that is cropped.

    Raises:
        DataError: the export is malformed, has no box to crop, or a photo cannot be read.
    """
    identity = [f"{MARGIN} {MIN_SIDE} {DECODING}", *files_identity(export.files())]
    photos = [photo for photo in export.photos() if photo.boxes]
    images = stored_images(
        cache, identity, len(photos), lambda start: _crops(photos[start:]), progress
    )
    if not images:
        skipped = skipped_boxes(export)
        reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
        raise DataError(
            f"the annotations have no box to crop ({reasons or 'there are none'}): label "
            "objects with boxes, or give a folder of class folders"
        )
    return images


def skipped_boxes(export: BoxExport) -> dict[str, int]:
    """The number of boxes that are not cropped, by reason, most frequent first. Reads all photos.

    Raises:
        DataError: the export is malformed, or a photo cannot be read.
    """
    skipped: Counter[str] = Counter()
    for photo in export.photos():
        if photo.boxes:
            _, skipped_of_photo = _windows(photo, open_image(photo.path).size)
            skipped += skipped_of_photo
    return dict(skipped.most_common())


def existing(export: Path, photos: Iterable[tuple[str, Path]]) -> None:
    """Check that all `photos`, pairs of the name in the export and the path, exist.

    Raises:
        DataError: photos are missing.
    """
    missing = [name for name, path in photos if not path.is_file()]
    if missing:
        raise DataError(
            f"{export} lists {len(missing)} photos that do not exist ({some(missing)}): keep the "
            "photos in the folders of the export"
        )


def _crops(photos: Iterable[Photo]) -> Iterator[list[EncodedImage] | UnreadableImages]:
    """The crops of each of the `photos`, or why it cannot be read."""
    for photo in photos:
        try:
            image = open_image(photo.path)
        except UnreadableImages as error:
            yield error
            continue
        windows, _ = _windows(photo, image.size)
        name = "/".join(photo.path.parts[-3:])  # independent of the export's location
        yield [
            EncodedImage(photo.split, key, "crop.png", _png(image.crop(window)), name)
            for key, window in windows
        ]


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png", compress_level=1)  # several times faster, files 20 % larger
    return content.getvalue()


Window = tuple[int, int, int, int]  # left, top, right, bottom


def _windows(photo: Photo, size: tuple[int, int]) -> tuple[list[tuple[str, Window]], Counter[str]]:
    """The class and window of each crop of a photo of `size`, and the skipped boxes by reason."""
    if photo.size is not None and not _same_shape(photo.size, size):
        return [], Counter({OTHER_SHAPE: len(photo.boxes)})  # for example a wrong orientation
    windows: list[tuple[str, Window]] = []
    skipped: Counter[str] = Counter()
    for box in photo.boxes:
        left, right = (size[0] * min(max(share, 0.0), 1.0) for share in (box.left, box.right))
        top, bottom = (size[1] * min(max(share, 0.0), 1.0) for share in (box.top, box.bottom))
        sides = (right - left, bottom - top)
        if box.is_crowd:
            skipped[CROWD] += 1
        elif not min(sides) > 0:
            skipped[EMPTY] += 1
        elif round(min(sides)) < MIN_SIDE:
            skipped[SMALL] += 1
        else:
            side = max(sides) * (1 + 2 * MARGIN)
            across = _span((left + right) / 2, side, size[0])
            down = _span((top + bottom) / 2, side, size[1])
            windows.append((box.key, (across[0], down[0], across[1], down[1])))
    return windows, skipped


def _span(centre: float, side: float, limit: int) -> tuple[int, int]:
    """`side` pixels around `centre`, moved and clipped to the range 0 to `limit`."""
    length = min(round(side), limit)
    first = min(max(round(centre - length / 2), 0), limit - length)
    return first, first + length


def _same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    ratio = first[0] / first[1] * second[1] / second[0]
    return abs(ratio - 1) <= ASPECT_TOLERANCE
