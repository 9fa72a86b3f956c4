"""Artifacts on their way in: whole bodies, and chunks that go on where the last one broke off.

Notable:
- A file that comes in chunks grows under the name of its job and its SHA-256. Its size is the place
  to go on at, so whoever sends it, and whichever process receives it, need remember nothing.
- Each piece is appended under a lock, and only at its own place: what still arrives over a
  connection that was given up changes nothing.
- Nothing refers to a file before it is whole, has its hash and is on disk.
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
from enrich_service.core.private_files import make_private_folder
from enrich_service.core.text import shortened
from enrich_service.jobs.artifacts import location
from enrich_service.jobs.models import JobRow

CHUNK = 4 * 1024 * 1024  # bytes that a sender is asked to send at a time
FORGOTTEN_SECONDS = 7 * 86_400  # after the last chunk of a file that never got whole
_GROWING = re.compile(r"upload-(\d+)-")
_RANGE = re.compile(r"bytes (?:\*|(\d{1,15})-(\d{1,15}))/([1-9]\d{0,14})")


@dataclass(frozen=True)
class Chunk:
    """The bytes from `start` up to `end` (not included) of `total`; no bytes ask how far it got."""

    start: int
    end: int
    total: int


def discard_ended(session: Session, folder: Path) -> None:
    """Delete the unfinished uploads of jobs that have ended: nobody will send the rest."""
    growing = {
        path: int(found.group(1))
        for path in folder.glob("upload-*")
        if (found := _GROWING.match(path.name))
    }
    if not growing:
        return
    going_on = [state for state in JobState if not state.is_final]
    jobs = set(session.exec(select(JobRow.id).where(col(JobRow.state).in_(going_on))))
    for path, job_id in growing.items():
        if job_id not in jobs:
            path.unlink(missing_ok=True)


def read_range(content_range: str) -> Chunk:
    """The chunk that a Content-Range announces; InvalidInput where it announces none."""
    found = _RANGE.fullmatch(content_range)
    if found is None:
        raise InvalidInput(
            f"{shortened(content_range)} is no Content-Range: write 'bytes FIRST-LAST/TOTAL', or "
            "'bytes */TOTAL' to ask where to go on"
        )
    first, last, total = found.groups()
    chunk = (
        Chunk(0, 0, int(total)) if first is None else Chunk(int(first), int(last) + 1, int(total))
    )
    if not chunk.start <= chunk.end <= chunk.total:
        raise InvalidInput(f"The Content-Range {shortened(content_range)} goes beyond its file.")
    return chunk


async def receive(
    body: AsyncIterator[bytes], folder: Path, *, sha256: str | None, limit: int
) -> tuple[str, int]:
    """Write a whole body to its place in `folder`: all of it and on disk, or nothing.

    Returns its SHA-256 and its size in bytes. Raises InvalidInput where it does not have the hash
    that was announced, TooLarge above `limit` bytes.
    """
    make_private_folder(folder)
    size = 0
    descriptor, incoming = _incoming(folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for piece in body:
                size += len(piece)
                if size > limit:
                    raise TooLarge(f"An artifact has at most {limit} bytes.")
                await to_thread.run_sync(file.write, piece)
            file.flush()
            found = await to_thread.run_sync(_put_in_place, incoming, folder, sha256)
    finally:
        incoming.unlink(missing_ok=True)
    return found, size


def _incoming(folder: Path) -> tuple[int, Path]:
    """A new file, locked while it is written. What kills and lost senders have left goes away."""
    for left in folder.glob("incoming-*"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    for left in folder.glob("upload-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
                left.unlink()
    while True:
        descriptor, name = tempfile.mkstemp(prefix="incoming-", dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another process saw it before the lock


async def receive_chunk(
    body: AsyncIterator[bytes], folder: Path, chunk: Chunk, *, job_id: int, sha256: str, limit: int
) -> int:
    """Append a chunk to the file with this hash, and put it in its place once it is whole.

    Returns how many bytes are here now: `chunk.total` when there is nothing more to send. A chunk
    that does not begin there is passed over. Raises InvalidInput where the whole file has another
    hash, which ends it, or a body is longer than announced; TooLarge above `limit` bytes.
    """
    if chunk.total > limit:
        raise TooLarge(f"An artifact has at most {limit} bytes.")
    target = location(folder, sha256)
    if target.is_file() and target.stat().st_size == chunk.total:
        os.utime(target)  # it is wanted: see retention
        return chunk.total
    make_private_folder(folder)
    growing = folder / f"upload-{job_id}-{sha256}-{chunk.total}"
    position = chunk.start
    async for piece in body:
        if position + len(piece) > chunk.end:
            raise InvalidInput("The body is longer than its Content-Range says.")
        if piece:
            await to_thread.run_sync(_append, growing, position, piece)
        position += len(piece)
    size = growing.stat().st_size if growing.is_file() else 0
    if size < chunk.total:
        return size
    await to_thread.run_sync(_finish, growing, folder, sha256)
    return chunk.total if target.is_file() else 0


def _append(growing: Path, position: int, piece: bytes) -> None:
    """Write `piece` if it begins where `growing` ends."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | (0 if position else os.O_CREAT)
        descriptor = os.open(growing, flags, 0o600)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size == position:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _finish(growing: Path, folder: Path, sha256: str) -> None:
    with suppress(FileNotFoundError), growing.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if growing.exists():  # else another request was first
            try:
                _put_in_place(growing, folder, sha256)
            except InvalidInput:
                growing.unlink()
                raise


def _put_in_place(file: Path, folder: Path, sha256: str | None) -> str:
    """Move a file to where its SHA-256 says, so that it outlasts a power cut; that hash."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
        if sha256 is not None and found != sha256:
            raise InvalidInput(
                f"What came has the SHA-256 {found}, not {shortened(sha256, 70)}: send it again."
            )
        os.fsync(content.fileno())
    target = location(folder, found)
    make_private_folder(target.parent)
    file.replace(target)
    for changed in (target.parent, folder):
        descriptor = os.open(changed, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return found
