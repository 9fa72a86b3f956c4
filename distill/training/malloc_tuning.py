"""Memory allocation in training."""

import ctypes
import sys
from typing import Final

import torch

_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Make this process keep freed memory for later allocations instead of returning it.

    Otherwise each training step on a CPU requests the memory of all its activations from the kernel
    again, and waits until it is zeroed: up to a fifth of the time. The process stays at its peak
    size. No effect without glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)


def out_of_memory(batch_size: int) -> str:
    """What to tell of a training that ran out of it."""
    return (
        f"out of memory with a batch_size of {batch_size}: use a smaller one, or a machine with "
        "more memory"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is a lack of memory, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch raises a plain RuntimeError where the CPU's memory is at its end.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
