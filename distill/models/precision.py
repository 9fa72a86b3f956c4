"""Numerical precision of networks: bfloat16 where the hardware computes it, else float32."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from distill.models.cpu_kernels import cpu_kernel_overrides


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether `device` computes bfloat16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def training_precision(device: torch.device, *, cpu_kernels: bool = True) -> Iterator[None]:
    """Autocast a network's forward pass to bfloat16 where that is faster than float32.

    With `cpu_kernels`, a CPU also uses the kernels of `distill.models.cpu_kernels`.
    """
    fast = bfloat16_is_fast(device)
    overrides = (
        cpu_kernel_overrides(bfloat16=fast)
        if cpu_kernels and device.type == "cpu"
        else nullcontext()
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=fast), overrides:
        yield
