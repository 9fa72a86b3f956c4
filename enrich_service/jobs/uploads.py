"""Uploads of artifacts: whole bodies, and chunks that resume after an interruption.

Notable:
- A chunked file grows under the name of its job and its SHA-256. Its size is the next offset, so
  neither client nor server processes need any other state.
- Each chunk is appended under a lock, and only at its own offset: data that still arrives over an
  abandoned connection cannot damage the file.
- A file is referenced only after it is complete, verified against its hash and synced to disk.
"""

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread
from sqlmodel import Session, col, select

from contract import JobState
from enrich_service.core.errors import InvalidInput, TooLarge
from enrich_service.core.storage.private_files import make_private_folder
from enrich_service.core.text import shortened
from enrich_service.jobs.artifacts import location
from enrich_service.jobs.models import JobRow

CHUNK = 4 * 1024 * 1024  # proposed chunk size in bytes
UPLOAD_EXPIRY_S = 7 * 86_400  # after the last chunk of an incomplete upload
_PARTIAL = re.compile(r"upload-(\d+)-")
_RANGE = re.compile(r"bytes (?:\*|(\d{1,15})-(\d{1,15}))/([1-9]\d{0,14})")


@dataclass(frozen=True)
class Chunk:
    """Bytes `start` to `end` (exclusive) of `total`; an empty chunk requests the offset."""

    start: int
    end: int
    total: int


def discard_ended(session: Session, folder: Path) -> None:
    """Delete the incomplete uploads of finished jobs."""
    partial = {
        path: int(match.group(1))
        for path in folder.glob("upload-*")
        if (match := _PARTIAL.match(path.name))
    }
    if not partial:
        return
    active = [state for state in JobState if not state.is_final]
    jobs = set(session.exec(select(JobRow.id).where(col(JobRow.state).in_(active))))
    for path, job_id in partial.items():
        if job_id not in jobs:
            path.unlink(missing_ok=True)


def read_range(content_range: str) -> Chunk:
    """Parse a Content-Range header. Raises InvalidInput."""
    match = _RANGE.fullmatch(content_range)
    if match is None:
        raise InvalidInput(
            f"{shortened(content_range)} is not a Content-Range: write 'bytes FIRST-LAST/TOTAL', "
            "or 'bytes */TOTAL' to request the offset"
        )
    first, last, total = match.groups()
    chunk = (
        Chunk(0, 0, int(total)) if first is None else Chunk(int(first), int(last) + 1, int(total))
    )
    if not chunk.start <= chunk.end <= chunk.total:
        raise InvalidInput(f"The Content-Range {shortened(content_range)} exceeds the file size.")
    return chunk


async def receive(
    body: AsyncIterator[bytes], folder: Path, *, sha256: str | None, limit: int
) -> tuple[str, int]:
    """Store a body atomically in `folder` under its SHA-256.

    Returns the SHA-256 and the size in bytes. Raises InvalidInput if the hash is not `sha256`,
    TooLarge above `limit` bytes.
    """
    make_private_folder(folder)
    size = 0
    descriptor, incoming = _incoming(folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for piece in body:
                size += len(piece)
                if size > limit:
                    raise TooLarge(
                        f"The artifact exceeds {limit} bytes (ENRICH_MAX_ARTIFACT_BYTES)."
                    )
                await to_thread.run_sync(file.write, piece)
            file.flush()
            digest = await to_thread.run_sync(_store, incoming, folder, sha256)
    finally:
        incoming.unlink(missing_ok=True)
    return digest, size


def _incoming(folder: Path) -> tuple[int, Path]:
    """Create a temporary file, locked while it is written, and delete abandoned ones."""
    for leftover in folder.glob("incoming-*"):
        with suppress(OSError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
    for leftover in folder.glob("upload-*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > UPLOAD_EXPIRY_S:
                leftover.unlink()
    while True:
        descriptor, name = tempfile.mkstemp(prefix="incoming-", dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another process deleted it before the lock


async def receive_chunk(
    body: AsyncIterator[bytes], folder: Path, chunk: Chunk, *, job_id: int, sha256: str, limit: int
) -> int:
    """Append a chunk to the upload with this hash; store the file once it is complete.

    Returns the number of bytes received: `chunk.total` if complete. A chunk at another offset is
    ignored. Raises InvalidInput if the complete file has another hash, which discards it, or if the
    body exceeds its Content-Range; TooLarge above `limit` bytes.
    """
    if chunk.total > limit:
        raise TooLarge(f"The artifact exceeds {limit} bytes (ENRICH_MAX_ARTIFACT_BYTES).")
    target = location(folder, sha256)
    if target.is_file() and target.stat().st_size == chunk.total:
        os.utime(target)  # keeps it from pruning: see retention
        return chunk.total
    make_private_folder(folder)
    partial = folder / f"upload-{job_id}-{sha256}-{chunk.total}"
    position = chunk.start
    async for piece in body:
        if position + len(piece) > chunk.end:
            raise InvalidInput("The body is longer than its Content-Range.")
        if piece:
            await to_thread.run_sync(_append, partial, position, piece)
        position += len(piece)
    size = partial.stat().st_size if partial.is_file() else 0
    if size < chunk.total:
        return size
    await to_thread.run_sync(_finish, partial, folder, sha256)
    return chunk.total if target.is_file() else 0


def _append(partial: Path, position: int, piece: bytes) -> None:
    """Write `piece` if it begins where `partial` ends."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | (0 if position else os.O_CREAT)
        descriptor = os.open(partial, flags, 0o600)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size == position:
            remaining = memoryview(piece)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
    finally:
        os.close(descriptor)


def _finish(partial: Path, folder: Path, sha256: str) -> None:
    with suppress(FileNotFoundError), partial.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():  # otherwise another request stored it
            try:
                _store(partial, folder, sha256)
            except InvalidInput:
                partial.unlink()
                raise


def _store(file: Path, folder: Path, sha256: str | None) -> str:
    """Move a file durably to the location of its SHA-256. Returns the hash."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        if sha256 is not None and digest != sha256:
            raise InvalidInput(
                f"The body has the SHA-256 {digest}, not {shortened(sha256, 70)}: send it again."
            )
        os.fsync(content.fileno())
    target = location(folder, digest)
    make_private_folder(target.parent)
    file.replace(target)
    for directory in (target.parent, folder):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return digest
