"""A tensor and some words in a safetensors file: written whole or not at all, checked when read."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill.data.atomic_file import atomic_file
from distill.errors import DataError

log = logging.getLogger(__name__)


class DamagedFile(Exception):
    """The file is cut off, was changed or is something else."""


def write_tensor(path: Path, tensor: Tensor, words: Mapping[str, str] | None = None) -> None:
    """Write `tensor` and `words` to `path`; a kill leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; nothing half-written stays behind.
    """
    tensor = tensor.detach().cpu().contiguous()
    content = save({"tensor": tensor}, {**(words or {}), "sha256": _sha256(tensor)})
    with atomic_file(path) as file:
        file.write(content)


def write_rows(path: Path, rows: Iterable[Tensor], shape: Sequence[int]) -> None:
    """As `write_tensor`, of a float32 tensor of `shape` that comes in pieces and is never whole.

    Raises:
        OSError: it cannot be written; nothing half-written stays behind.
    """
    size = 4 * math.prod(shape)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        # The digest is known at the end only, but its length is known now.
        file.write(_header(shape, size, "0" * 64))
        for piece in rows:
            content = piece.contiguous().numpy().tobytes()
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(_header(shape, size, digest.hexdigest()))


def _header(shape: Sequence[int], size: int, sha256: str) -> bytes:
    """The beginning of a safetensors file of one tensor."""
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    words = json.dumps({"__metadata__": {"sha256": sha256}, "tensor": tensor}).encode()
    words += b" " * (-len(words) % 8)
    return len(words).to_bytes(8, "little") + words


def read_tensor(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The tensor, memory-mapped, and the words in the file at `path`.

    Raises:
        DamagedFile: it is not what `write_tensor` wrote.
        OSError: it is missing or cannot be read.
    """
    path.stat()
    try:
        with safe_open(path, framework="pt") as file:
            words = dict(file.metadata() or {})
            tensor: Tensor = file.get_tensor("tensor")
    except SafetensorError as error:
        raise DamagedFile(str(error)) from None
    if words.pop("sha256", None) != _sha256(tensor):
        raise DamagedFile("the content is not what was written")
    return tensor, words


def _sha256(tensor: Tensor) -> str:
    # Without a copy: the tensor may be larger than memory.
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def cached_tensor(path: Path, what: str, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in the cache file at `path`; made, and kept there, where it is missing or damaged.

    Raises:
        DataError: the file cannot be written. And what `make` raises.
    """
    if path.exists():
        try:
            return read_tensor(path)[0]
        except (DamagedFile, OSError) as error:
            log.warning("the cached %ss %s are damaged (%s): making them again", what, path, error)
    tensor = make()
    try:
        write_tensor(path, tensor)
    except OSError as error:
        raise DataError(
            f"cannot write the {what} cache {path} ({error.strerror}): free some space or choose "
            "another cache folder"
        ) from None
    return tensor
