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
    """Context that autocasts forward passes to `precision`, by default bfloat16 if that is fast.

    With `cpu_kernels`, the replacements of `distill.models.cpu_kernels` are used on a CPU.
    """
    is_bfloat16 = student_dtype(device, precision) is torch.bfloat16
    overrides = (
        cpu_kernel_overrides(bfloat16=is_bfloat16)
        if cpu_kernels and device.type == "cpu"
        else nullcontext()
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16), overrides:
        yield
