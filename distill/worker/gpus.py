"""The NVIDIA GPUs that a training may use, found without loading torch into the worker."""

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi names it."""

    name: str
    memory_gb: float  # GiB


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _hides_all(visible):
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if visible:
        command.append(f"--id={visible}")
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        lines = [line.rpartition(",") for line in answer.stdout.splitlines() if line.strip()]
        return tuple(
            Gpu(name.strip(), round(float(mebibytes) / 1024, 1)) for name, _, mebibytes in lines
        )
    return ()


def has_gpu() -> bool:
    """Whether a training may use an NVIDIA GPU; in a container, nvidia-smi may be missing."""
    if _hides_all(os.environ.get("CUDA_VISIBLE_DEVICES")):
        return False
    return bool(find_gpus()) or any(Path("/dev").glob("nvidia[0-9]*"))


def _hides_all(visible: str | None) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES hides all GPUs: it is empty, or begins with -1."""
    return visible is not None and (not visible.strip() or visible.strip().startswith("-"))
