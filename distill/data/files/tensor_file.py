"""One tensor with metadata in a safetensors file, written atomically and verified when read."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill.data.files.atomic_file import atomic_file
from distill.errors import DataError

log = logging.getLogger(__name__)


class DamagedFile(Exception):
    """The file is truncated, modified or of another format."""


def write_tensor(path: Path, tensor: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensor` and `metadata` to `path` atomically.

    Raises:
        OSError: the file cannot be written; no partial file remains.
    """
    tensor = tensor.detach().cpu().contiguous()
    content = save({"tensor": tensor}, {**(metadata or {}), "sha256": _sha256(tensor)})
    with atomic_file(path) as file:
        file.write(content)


def write_rows(path: Path, rows: Iterable[Tensor], shape: Sequence[int]) -> None:
    """Write a float32 tensor of `shape` from chunks of its rows, without holding it in memory.

    Raises:
        OSError: the file cannot be written; no partial file remains.
    """
    size = 4 * math.prod(shape)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        # The digest is known only at the end: write a placeholder of the same length.
        file.write(_header(shape, size, "0" * 64))
        for chunk in rows:
            content = chunk.contiguous().numpy().tobytes()
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(_header(shape, size, digest.hexdigest()))


def _header(shape: Sequence[int], size: int, sha256: str) -> bytes:
    """The header of a safetensors file with one tensor."""
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"sha256": sha256}, "tensor": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def read_tensor(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The memory-mapped tensor and the metadata in the file at `path`.

    Raises:
        DamagedFile: its content is not what `write_tensor` wrote.
        OSError: it is missing or cannot be read.
    """
    path.stat()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensor: Tensor = file.get_tensor("tensor")
    except SafetensorError as error:
        raise DamagedFile(str(error)) from None
    if metadata.pop("sha256", None) != _sha256(tensor):
        raise DamagedFile("the SHA-256 of the content differs")
    return tensor, metadata


def _sha256(tensor: Tensor) -> str:
    # No copy: the tensor may be larger than memory.
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def cached_tensor(path: Path, what: str, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in the cache file at `path`; computed by `make` and stored if missing or damaged.

    `what` names a row in messages.

    Raises:
        DataError: the file cannot be written. Also what `make` raises.
    """
    if (known := read_cached(path, what)) is not None:
        return known
    tensor = make()
    try:
        write_tensor(path, tensor)
    except OSError as error:
        raise cannot_write_cache(path, what, error) from None
    return tensor


def read_cached(path: Path, what: str) -> Tensor | None:
    """The tensor in the cache file at `path`; None if it is missing or damaged.

    A damaged file is deleted with a warning, in which `what` names a row.
    """
    if not path.exists():
        return None
    try:
        return read_tensor(path)[0]
    except (DamagedFile, OSError) as error:
        log.warning(
            "the cached %ss in %s are damaged (%s): computing them again", what, path, error
        )
        with suppress(OSError):
            path.unlink()
        return None


def cannot_write_cache(path: Path, what: str, error: OSError) -> DataError:
    """The error for a cache file that cannot be written."""
    return DataError(
        f"cannot write the {what} cache {path} ({error.strerror}): free some space or choose "
        "another cache folder"
    )
