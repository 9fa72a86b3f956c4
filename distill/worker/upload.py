"""Uploads result files in chunks, each from the offset that the service reports."""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import httpx
from pydantic import BaseModel, NonNegativeInt, PositiveInt

from distill.errors import ServiceUnavailable
from distill.worker.client import ServiceClient

RETRY_INTERVAL_S: Final = 0.5


class UploadState(BaseModel):
    """The number of bytes of a file that the service has, and the size of the next chunk."""

    offset: NonNegativeInt
    chunk: PositiveInt


def upload(service: ServiceClient, path: str, file: Path, media_type: str) -> None:
    """Store `file` under `path` at the service.

    The retry deadline starts again with each stored chunk.

    Raises:
        LeaseLost, ServiceUnavailable, RequestRefused, ServiceError: as in `ServiceClient.send`.
        OSError: the file cannot be read.
    """
    with file.open("rb") as content:
        headers = {
            "Content-Type": media_type,
            "X-Content-SHA256": hashlib.file_digest(content, "sha256").hexdigest(),
        }
        size = content.seek(0, os.SEEK_END)
        ask_offset = headers | {"Content-Range": f"bytes */{size}"}
        answer = service.send_with_retries("PUT", path, headers=ask_offset)
        failed_at, deadline = -1, 0.0  # offset of the chunk that failed last, and its deadline
        while answer.status_code == httpx.codes.ACCEPTED:
            state = service.parse(UploadState, answer)
            content.seek(state.offset)
            chunk = content.read(state.chunk)
            span = f"bytes {state.offset}-{state.offset + len(chunk) - 1}/{size}"
            try:
                answer = service.send(
                    "PUT", path, content=chunk, headers=headers | {"Content-Range": span}
                )
            except ServiceUnavailable:
                if state.offset > failed_at:
                    failed_at, deadline = state.offset, time.monotonic() + service.retry_deadline
                if service.stop.is_set() or time.monotonic() > deadline:
                    raise
                service.stop.wait(RETRY_INTERVAL_S)
                answer = service.send_with_retries("PUT", path, headers=ask_offset)
