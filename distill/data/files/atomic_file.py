"""Atomic replacement of files: a crash leaves either the old file or the new file.

Workers in containers may share a folder and have equal process ids, so the name of a temporary file
does not identify its writer. The writer holds a lock on it instead; an unlocked temporary file is
from a killed process.
"""

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, sync_folder: bool = True) -> Iterator[BinaryIO]:
    """A temporary file that replaces `path` when the block ends without an error.

    Without `sync_folder`, a power failure may undo the replacement, but leaves no partial file.

    Creates the folder of `path` if needed, and first removes temporary files of `path` that killed
    processes left behind.

    Raises:
        OSError: the file cannot be written; no temporary file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), stale.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()
    partial, file = _create_partial(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        if sync_folder:
            _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _create_partial(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file for `path`, locked."""
    while True:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        file = partial.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # 0 once it is deleted
            return partial, file
        file.close()  # another writer deleted it as stale before it was locked


def write_atomically(path: Path, content: bytes | str, *, sync_folder: bool = True) -> None:
    """Replace the file at `path` with `content`; text is written as UTF-8. See `atomic_file`.

    Raises:
        OSError: the file cannot be written; no temporary file remains.
    """
    with atomic_file(path, sync_folder=sync_folder) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _sync_folder(folder: Path) -> None:
    """Sync the folder's entries to disk; otherwise a power failure may undo the rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync a folder; the file is written
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
