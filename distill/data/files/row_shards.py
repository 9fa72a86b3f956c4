"""A tensor that takes hours to compute: written in shards as its rows come, then as one file.

The shards of FILE.safetensors are in the folder FILE.shards. A computation that was killed goes on
with those that are there. When all are there, they become the one file and the folder is deleted.
Neither step holds more than a shard in memory.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from torch import Tensor

from distill.data.files.tensor_file import (
    DamagedFile,
    cannot_write_cache,
    read_cached,
    read_tensor,
    write_rows,
)

SHARD_ROWS: Final = 1024
# From ranges of rows to their float32 values, in pieces of which none is of two ranges.
ComputeRows = Callable[[Sequence[range]], Iterator[Tensor]]


def cached_rows(path: Path, what: str, shape: Sequence[int], compute: ComputeRows) -> Tensor:
    """The float32 tensor of `shape` in the file at `path`, memory-mapped.

    What is missing of it, or damaged, is computed and written. `what` names a row in messages.

    Raises:
        DataError: the file cannot be written. Also what `compute` raises.
    """
    if (known := read_cached(path, what)) is not None:
        return known
    try:
        if shape[0] <= SHARD_ROWS:
            write_rows(path, compute([range(shape[0])]), shape)
        else:
            _write_in_shards(path, shape, compute)
        return read_tensor(path)[0]
    except OSError as error:
        if path.exists():  # another process was faster, and has deleted the shards
            return read_tensor(path)[0]
        raise cannot_write_cache(path, what, error) from None


def _write_in_shards(path: Path, shape: Sequence[int], compute: ComputeRows) -> None:
    folder = path.with_suffix(".shards")
    shards = {
        folder / f"{start:09}.safetensors": range(start, min(start + SHARD_ROWS, shape[0]))
        for start in range(0, shape[0], SHARD_ROWS)
    }
    missing = {
        shard: rows
        for shard, rows in shards.items()
        if not _is_whole(shard, (len(rows), *shape[1:]))
    }
    pieces = compute(list(missing.values()))
    for shard, rows in missing.items():
        write_rows(shard, _take(pieces, len(rows)), (len(rows), *shape[1:]))
    write_rows(path, (read_tensor(shard)[0] for shard in shards), shape)
    shutil.rmtree(folder, ignore_errors=True)


def _is_whole(shard: Path, shape: Sequence[int]) -> bool:
    try:
        return read_tensor(shard)[0].shape == tuple(shape)
    except (DamagedFile, OSError):
        return False


def _take(pieces: Iterator[Tensor], rows: int) -> Iterator[Tensor]:
    """The next pieces, until they make up `rows`."""
    while rows > 0:
        piece = next(pieces)
        rows -= len(piece)
        yield piece
