"""Image files of a report: similarity maps in greyscale, and sheets of example images.

They are small enough for a web page: a similarity map of 1,000 classes takes about 200 kB.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract import Similarity, SimilarityPicture, Thumbnails
from distill.data.files.atomic_file import write_atomically
from distill.data.files.image_file import open_image, square
from distill.data.splits import Split
from distill.errors import DataError, UnreadableImages

SIMILARITY_FILES: Final = ("similarity-before.png", "similarity-after.png")
THUMBNAIL_FILE: Final = "thumbnails.jpg"
MAX_MAP_BYTES: Final = 200_000  # bytes
LEVELS: Final = (256, 128, 64, 48, 32, 24, 16, 12, 8)  # of grey; fewer levels compress better
MAX_SHEET_BYTES: Final = 120_000  # bytes
SIDE, COLUMNS, EXAMPLES = 64, 12, 2  # pixels of a tile, tiles per row, tiles per class
MAX_TILES: Final = 96
QUALITIES: Final = (85, 70, 50, 30)  # of JPEG


def similarity_order(similarity: NDArray[np.float32]) -> list[int]:
    """An order of classes in which each is followed by the most similar of the remaining ones.

    `similarity` [classes, classes]. Groups of similar classes become blocks on the diagonal. The
    first class is the one least similar to the others. Ties go to the smallest index.
    """
    if len(similarity) == 0:
        return []
    remaining = np.ones(len(similarity), dtype=bool)
    order = [int(similarity.sum(axis=1).argmin())]
    remaining[order[0]] = False
    while remaining.any():
        order.append(int(np.where(remaining, similarity[order[-1]], -np.inf).argmax()))
        remaining[order[-1]] = False
    return order


def draw_similarity(
    out: Path, similarity: Mapping[str, NDArray[np.float32]], names: Sequence[str]
) -> Similarity | None:
    """Draw each matrix of cosines to a file in `out`. Returns None for fewer than two classes.

    `similarity` maps a text strategy to its cosines [classes, classes], the strategy before
    enrichment first; `names` are the class names of the rows. All images use the `similarity_order`
    of the first matrix.

    Raises:
        DataError: `out` cannot be written to.
    """
    if len(names) < 2:
        return None
    order = similarity_order(next(iter(similarity.values())))
    pictures = []
    for file, (text, matrix) in zip(SIMILARITY_FILES, similarity.items(), strict=False):
        picture, png = _grey(matrix[np.ix_(order, order)], text, file)
        _write(out / file, png)
        pictures.append(picture)
    return Similarity(classes=tuple(names[row] for row in order), pictures=tuple(pictures))


def _grey(matrix: NDArray[np.float32], text: str, file: str) -> tuple[SimilarityPicture, bytes]:
    """The matrix as a PNG with the most grey levels that fit into MAX_MAP_BYTES, and its scale."""
    above = np.triu(np.ones(matrix.shape, dtype=bool), k=1)
    low, high = float(matrix[above].min()), float(matrix[above].max())
    high = max(high, low + 1e-6)
    share = np.where(above, (matrix - low) / (high - low), 0)
    for levels in LEVELS:
        steps = np.rint(share * (levels - 1)) / (levels - 1)
        pixels = Image.fromarray(np.rint(255 * steps).astype(np.uint8))
        png = io.BytesIO()
        pixels.save(png, "PNG", optimize=True)
        if png.tell() <= MAX_MAP_BYTES:
            break
    step = (high - low) / (levels - 1)
    return SimilarityPicture(text=text, file=file, low=low, high=high, step=step), png.getvalue()


def draw_thumbnails(
    out: Path, split: Split, names: Mapping[str, str], keys: Sequence[str]
) -> Thumbnails | None:
    """Draw the first images of the classes `keys` to one file in `out`, at most MAX_TILES.

    `names` maps class keys to names. Returns None if `split` has no image of these classes.

    Raises:
        DataError: `out` cannot be written to.
    """
    images = defaultdict(list)
    for path, target in zip(split.paths, split.targets.tolist(), strict=True):
        images[split.keys[target]].append(path)
    tiles: list[tuple[str, NDArray[np.uint8]]] = []
    for key in dict.fromkeys(keys):
        for path in images.get(key, [])[:EXAMPLES]:
            try:
                tiles.append((names[key], square(open_image(path), SIDE).transpose(1, 2, 0)))
            except UnreadableImages:  # deleted since the training started
                continue
    del tiles[MAX_TILES:]
    if not tiles:
        return None
    for quality in QUALITIES:
        jpeg = _sheet([pixels for _, pixels in tiles], quality)
        if len(jpeg) <= MAX_SHEET_BYTES:
            break
    _write(out / THUMBNAIL_FILE, jpeg)
    return Thumbnails(
        file=THUMBNAIL_FILE,
        side=SIDE,
        columns=COLUMNS,
        tiles=tuple(name for name, _ in tiles),
    )


def _sheet(tiles: Sequence[NDArray[np.uint8]], quality: int) -> bytes:
    """Tiles, each [side, side, 3], in rows as one JPEG."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * SIDE, COLUMNS * SIDE, 3), 127, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // COLUMNS * SIDE, number % COLUMNS * SIDE
        sheet[top : top + SIDE, left : left + SIDE] = tile
    jpeg = io.BytesIO()
    Image.fromarray(sheet).save(jpeg, "JPEG", quality=quality, optimize=True)
    return jpeg.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror}): free some space or choose another folder"
        ) from None
