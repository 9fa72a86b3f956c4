"""Limits, keys and threads of one server."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distill.data.cores import usable_cores
from distill.errors import UserError

KEY_VARIABLE: Final = "DISTILL_SERVE_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server. Limits are per request unless noted otherwise."""

    max_batch: int = 8  # photos per run of the encoder
    max_wait_ms: float = 5.0  # longest time that a decoded photo waits for a batch to fill
    threads: int = field(default_factory=usable_cores)  # of the encoder, and of the decoders
    max_queue: int = 256  # photos of all requests that are being decoded, queued or encoded
    max_photos: int = 64
    max_bytes: int = 32 * 1024**2  # of the body
    max_pixels: int = 50_000_000  # of one photo
    head_timeout_s: float = 30.0  # for the whole head of a request
    body_timeout_s: float = 30.0  # between chunks of the body, and for each minimum amount of it
    keys: tuple[str, ...] = ()  # API keys; empty: see `allow_remote`
    allow_remote: bool = False  # whether to accept other machines without an API key
    read_only: bool = False  # whether to reject changes of the classes
    service: str | None = None  # enrichment service that describes new classes

    def __post_init__(self) -> None:
        """Raise UserError if limits contradict each other."""
        if self.max_photos > self.max_queue:
            raise UserError(
                f"a request of {self.max_photos} photos does not fit into a queue of "
                f"{self.max_queue}: raise --max-queue or lower --max-photos"
            )


def read_keys(key_file: Path | None) -> tuple[str, ...]:
    """The API keys: the lines of `key_file`, else the one in DISTILL_SERVE_KEY, else none.

    Raises:
        UserError: the file cannot be read or has no key, or a key has invalid characters.
    """
    if key_file is None:
        source, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    else:
        source = str(key_file)
        try:
            text = key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"cannot read the key file {key_file} ({reason})") from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if key_file is not None and not keys:
        raise UserError(f"the key file {key_file} is empty: write one key per line")
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(f"a key in {source} has invalid characters: use ASCII without spaces")
    return keys
