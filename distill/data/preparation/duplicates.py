"""Finds identical and nearly identical images: perceptual hashes that differ in few bits.

Two hashes that differ in at most NEAR_BITS bits are equal in at least one of NEAR_BITS + 1 bands,
so only hashes that share a band are compared.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from distill.data.files.image_file import open_image
from distill.data.files.packed_image import ImagePath
from distill.data.pixels import Progress
from distill.errors import DataError, UnreadableImages

HASH_BITS: Final = 64
NEAR_BITS: Final = 4  # maximum distance of resized, recompressed or slightly cropped copies


@dataclass(frozen=True)
class Fingerprint:
    """Hashes and size of an image file, for comparison."""

    sha256: str  # of the file
    perceptual: int  # 64 bits
    size: tuple[int, int]  # width and height in pixels


def fingerprints(
    paths: Sequence[ImagePath], progress: Progress | None = None
) -> list[Fingerprint | UnreadableImages]:
    """The fingerprint of each image, or why it cannot be read.

    Raises:
        DataError: the package imagehash is missing.
    """
    try:
        import imagehash  # noqa: F401 - before the threads import it
    except ModuleNotFoundError:
        raise DataError(
            "near-duplicates need the package imagehash: pip install 'enrich-distill[data]'"
        ) from None
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(_fingerprint, paths), start=1):
            results.append(result)
            if progress and (done % 64 == 0 or done == len(paths)):
                progress(done, len(paths))
    return results


def _fingerprint(path: ImagePath) -> Fingerprint | UnreadableImages:
    import imagehash

    try:
        image = open_image(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except UnreadableImages as error:
        return error
    except OSError as error:
        return UnreadableImages([f"{path} ({error.strerror})"])
    return Fingerprint(digest, int(str(imagehash.phash(image)), 16), image.size)


def near_duplicates(hashes: Sequence[int]) -> list[list[int]]:
    """Groups of two or more indices whose `hashes` are near, directly or through others."""
    by_hash: dict[int, list[int]] = defaultdict(list)
    for index, value in enumerate(hashes):
        by_hash[value].append(index)
    parent = {value: value for value in by_hash}

    def root(value: int) -> int:
        while parent[value] != value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    for bucket in _buckets(by_hash):
        for first, second in combinations(bucket, 2):
            if (first ^ second).bit_count() <= NEAR_BITS:
                parent[root(first)] = root(second)
    groups: dict[int, list[int]] = defaultdict(list)
    for value, indices in by_hash.items():
        groups[root(value)] += indices
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _buckets(hashes: Iterable[int]) -> list[list[int]]:
    """Groups of different hashes that share the bits of a band."""
    width = -(-HASH_BITS // (NEAR_BITS + 1))
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for value in hashes:
        for band in range(NEAR_BITS + 1):
            buckets[band, value >> (band * width) & ((1 << width) - 1)].append(value)
    return [bucket for bucket in buckets.values() if len(bucket) > 1]
