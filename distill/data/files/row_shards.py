"""A tensor that takes hours to compute: written in shards as its rows come, then as one file.

The shards of FILE.safetensors are in the folder FILE.shards. A computation that was killed goes on
with those that are there. When all are there, they become the one file and the folder is deleted.
Neither step holds more than a shard in memory. A tensor of few rows has no shards but the file.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CachedRows:
    """The float32 tensor of `shape` in the file at `path`, or the shards of it that are there.

    Several processes may write different shards of one tensor at once.
    """

    path: Path
    what: str  # names a row in messages
    shape: tuple[int, ...]
    compute: ComputeRows

    def read(self) -> Tensor:
        """The tensor, memory-mapped. What is missing of it, or damaged, is computed and written.

        Raises:
            DataError: the file cannot be written. Also what `compute` raises.
        """
        if (known := read_cached(self.path, self.what)) is not None:
            return known
        try:
            missing = self._missing_shards()
            pieces = self.compute(list(missing.values()))
            for shard, rows in missing.items():
                write_rows(shard, _take(pieces, len(rows)), (len(rows), *self.shape[1:]))
            self._join_shards()
            return read_tensor(self.path)[0]
        except OSError as error:
            if self.path.exists():  # another process was faster, and has deleted the shards
                return read_tensor(self.path)[0]
            raise cannot_write_cache(self.path, self.what, error) from None

    def missing(self) -> list[range]:
        """The rows of each shard that is missing or damaged, while there is no file yet."""
        return [] if self.path.exists() else list(self._missing_shards().values())

    def write_shard(self, rows: range) -> None:
        """Compute and write the shard of `rows` (see `missing`), unless it is there by now.

        Raises:
            DataError: the shard cannot be written. Also what `compute` raises.
        """
        shard = self._shard(rows)
        if self.path.exists() or self._is_whole(shard, rows):
            return
        try:
            write_rows(shard, self.compute([rows]), (len(rows), *self.shape[1:]))
        except OSError as error:
            raise cannot_write_cache(shard, self.what, error) from None

    def _shards(self) -> dict[Path, range]:
        starts = range(0, self.shape[0], SHARD_ROWS)
        parts = [range(start, min(start + SHARD_ROWS, self.shape[0])) for start in starts]
        return {self._shard(rows): rows for rows in parts}

    def _shard(self, rows: range) -> Path:
        if self.shape[0] <= SHARD_ROWS:
            return self.path
        return self.path.with_suffix(".shards") / f"{rows.start:09}.safetensors"

    def _missing_shards(self) -> dict[Path, range]:
        shards = self._shards().items()
        return {shard: rows for shard, rows in shards if not self._is_whole(shard, rows)}

    def _is_whole(self, shard: Path, rows: range) -> bool:
        try:
            return read_tensor(shard)[0].shape == (len(rows), *self.shape[1:])
        except (DamagedFile, OSError):
            return False

    def _join_shards(self) -> None:
        shards = list(self._shards())
        if shards != [self.path]:
            write_rows(self.path, (read_tensor(shard)[0] for shard in shards), self.shape)
            shutil.rmtree(self.path.with_suffix(".shards"), ignore_errors=True)


def _take(pieces: Iterator[Tensor], rows: int) -> Iterator[Tensor]:
    """The next pieces, until they make up `rows`."""
    while rows > 0:
        piece = next(pieces)
        rows -= len(piece)
        yield piece
