"""What a training does with memory, and what to tell when there was too little."""

import ctypes
import sys
from typing import Final

import torch

_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for what it will need next.

    Without it each step of a training on a CPU asks the system anew for the memory of all its
    activations, and waits until that is cleared: up to a fifth of its time. The process becomes
    hardly larger, but stays as large as it was at its peak. Without glibc nothing happens.
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
