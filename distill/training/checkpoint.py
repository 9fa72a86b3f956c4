"""Checkpoints: tensors and counters in one safetensors file, replaced atomically.

- The counters are in the header of the file, so that weights and counters are always consistent.
- safetensors detects truncated files; the digest in the header also detects flipped bits.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from contract import TrainConfig
from distill.data.files.atomic_file import write_atomically
from distill.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one run, which `config` and `release_hash` identify."""

    path: Path
    config: TrainConfig
    release_hash: str

    @property
    def identity(self) -> str:
        """SHA-256 of what must not change between a run and its resumption."""
        # The next worker may have another mount point, another device, or less memory for pixels;
        # the other fields only matter after the training.
        later = {"test_views", "export", "forecast", "track"}
        config = self.config.model_dump_json(exclude={"data", "device", "pixels", *later})
        return hashlib.sha256(f"{config}{self.release_hash}".encode()).hexdigest()

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Replace the file atomically.

        Raises:
            CheckpointError: the file cannot be written; the old one remains.
        """
        flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps(counters)
        header = {"identity": self.identity, "counters": text, "digest": _digest(flat, text)}
        content = save(flat, header)
        try:
            write_atomically(self.path, content)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {self.path} ({error.strerror}): free some space and "
                "resume"
            ) from None

    def check(self) -> None:
        """Check the header of the file, if there is one, before anything is computed.

        Raises:
            CheckpointError: the file is damaged, or belongs to another run.
        """
        if not self.path.is_file():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                identity = (file.metadata() or {})["identity"]
        except (SafetensorError, KeyError, OSError):
            raise self._damaged() from None
        if identity != self.identity:
            raise CheckpointError(
                f"the checkpoint {self.path} belongs to another configuration or release: use "
                "these, or choose another --out"
            )

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self.path} is damaged: delete it to start over")

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and counters in the file; None if there is no file.

        Raises:
            CheckpointError: the file is damaged, or belongs to another run.
        """
        if not self.path.is_file():
            return None
        self.check()
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest, text = header["digest"], header["counters"]
            if digest != _digest(tensors, text):
                raise ValueError("the digest differs")
            counters = json.loads(text)
        except (SafetensorError, KeyError, ValueError, OSError):
            raise self._damaged() from None
        return tensors, counters


def flatten(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimiser state as one flat dictionary of tensors."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):  # other values of Muon's state are computed from shapes
                tensors[f"optimiser.{index}.{slot}"] = value
    return tensors


@torch.no_grad()
def restore(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Load the tensors of `flatten` into `model` and `optimiser`."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    weights: dict[str, Tensor] = {}
    state = optimiser.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        kind, _, key = name.partition(".")
        if kind == "model":
            weights[key] = value
        else:
            index, slot = key.split(".")
            # In the parameter's memory format: fused optimisers iterate in memory order.
            parameter = parameters[int(index)]
            template = parameter if value.shape == parameter.shape else value
            slots = state["state"].setdefault(int(index), {})
            slots[slot] = torch.empty_like(template).copy_(value)
    model.load_state_dict(weights)
    optimiser.load_state_dict(state)


def _digest(tensors: Mapping[str, Tensor], counters: str) -> str:
    """SHA-256 of names, values and counters; the tensors are contiguous and on the CPU."""
    digest = hashlib.sha256(counters.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
