"""Checkpoints: tensors and counters in one safetensors file, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from contract import TrainConfig
from distill.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one run; `config` and `release_hash` say which run it belongs to."""

    path: Path
    config: TrainConfig
    release_hash: str

    @property
    def identity(self) -> str:
        """SHA-256 of what must not change between a run and its continuation."""
        # The folder may be mounted elsewhere on the next worker.
        config = self.config.model_dump_json(exclude={"data"})
        return hashlib.sha256(f"{config}{self.release_hash}".encode()).hexdigest()

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Replace the file; a kill at any moment leaves the old one or the new one.

        Raises:
            CheckpointError: it cannot be written; the old one is still there.
        """
        header = {"identity": self.identity, "counters": json.dumps(counters)}
        content = save({name: value.contiguous() for name, value in tensors.items()}, header)
        partial = self.path.with_suffix(".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # or the rename itself may be lost
            finally:
                os.close(folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write the checkpoint {self.path} ({error.strerror}): free some space and "
                "resume"
            ) from None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and counters of the file, or None where there is none.

        Raises:
            CheckpointError: the file is cut off, or belongs to another run.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            identity, counters = header["identity"], json.loads(header["counters"])
        except (SafetensorError, KeyError, ValueError, OSError):
            raise CheckpointError(
                f"the checkpoint {self.path} is cut off or damaged: delete it to start over"
            ) from None
        if identity != self.identity:
            raise CheckpointError(
                f"the checkpoint {self.path} belongs to another configuration or release: use "
                "those again, or choose another --out"
            )
        return tensors, counters
