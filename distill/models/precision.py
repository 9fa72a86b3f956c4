"""Numerical precision of a student's network in training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from contract import Precision
from distill.models.cpu_kernels import cpu_kernel_overrides
from distill.models.devices import student_dtype


@contextmanager
def training_precision(
    device: torch.device, precision: Precision = "auto", *, cpu_kernels: bool = True
) -> Iterator[None]:
    """Autocast a network's forward pass to `precision`, by default bfloat16 where that is fast.

    With `cpu_kernels`, a CPU also uses the kernels of `distill.models.cpu_kernels`.
    """
    reduced = student_dtype(device, precision) is torch.bfloat16
    overrides = (
        cpu_kernel_overrides(bfloat16=reduced)
        if cpu_kernels and device.type == "cpu"
        else nullcontext()
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced), overrides:
        yield
