"""Images in Arrow files, as the package datasets writes them: where each one lies in its file.

Notable: a column of bytes is contiguous in an Arrow file that is not compressed. The address of its
memory-mapped buffer tells its place in the file, so that nothing has to be unpacked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import IMAGE_SUFFIXES
from distill.data.files.packed_image import ImagePath, PackedImage
from distill.errors import DataError

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class ArrowRow:
    """Where the image of a row is, and the row's label as it is stored."""

    image: ImagePath
    label: Any


class NotInPlace(Exception):
    """The files have another layout, or are compressed."""


def rows_in_place(files: Sequence[Path], image_column: str, label_column: str) -> list[ArrowRow]:
    """The rows of Arrow files whose `image_column` has the fields `bytes` and `path`.

    A row without bytes has its image in the file at `path`.

    Raises:
        NotInPlace: the images have to be unpacked.
        DataError: a row has no image.
    """
    import pyarrow

    found: list[ArrowRow] = []
    try:
        for file in files:
            found.extend(_rows(file, len(found), image_column, label_column))
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise NotInPlace(str(error)) from None
    return found


def _rows(file: Path, first: int, image_column: str, label_column: str) -> Iterator[ArrowRow]:
    """The rows of one file; `first` is the number of the first one."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        start = source.read_buffer(1).address
        source.seek(0)
        for batch in pyarrow.ipc.open_stream(source):
            images, labels = batch.column(image_column), batch.column(label_column).to_pylist()
            names = images.field("path").to_pylist()
            places = _places(images.field("bytes"), start, source.size())
            for place, name, label in zip(places, names, labels, strict=True):
                if place is None and not name:
                    raise DataError(f"{file}, row {first} has no image: remove the row")
                suffix = Path(name or "").suffix.lower()
                shown = f"{first:08}{suffix if suffix in IMAGE_SUFFIXES else '.png'}"
                image: ImagePath = PackedImage(file, *place, shown) if place else Path(name)
                yield ArrowRow(image, label)
                first += 1


def _places(
    content: "pyarrow.BinaryArray", start: int, size: int
) -> Iterator[tuple[int, int] | None]:
    """Offset and length of each value in the file of `size` bytes that is mapped at `start`.

    None for a value that is missing.
    """
    import numpy as np
    import pyarrow

    if not pyarrow.types.is_binary(content.type) and not pyarrow.types.is_large_binary(
        content.type
    ):
        raise NotInPlace(f"images are stored as {content.type}")
    _, offsets, data = content.buffers()
    if data is not None and data.size and not start <= data.address < start + size:
        raise NotInPlace("the file is compressed")
    base = data.address - start if data is not None else 0
    kind = np.int64 if pyarrow.types.is_large_binary(content.type) else np.int32
    ends = np.frombuffer(offsets, kind)[content.offset : content.offset + len(content) + 1].tolist()
    missing = content.is_null().to_pylist()
    for row, is_missing in enumerate(missing):
        yield None if is_missing else (base + ends[row], ends[row + 1] - ends[row])
