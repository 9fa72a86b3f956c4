"""A tensor and some words in a safetensors file: written whole or not at all, checked when read."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class DamagedFile(Exception):
    """The file is cut off, was changed or is something else."""


def write_tensor(path: Path, tensor: Tensor, words: Mapping[str, str] | None = None) -> None:
    """Write `tensor` and `words` to `path`; a kill leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; nothing half-written stays behind.
    """
    tensor = tensor.detach().cpu().contiguous()
    content = save({"tensor": tensor}, {**(words or {}), "sha256": _sha256(tensor)})
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensor(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The tensor and the words in the file at `path`.

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
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
