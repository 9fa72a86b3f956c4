"""When a training needed more memory than there was."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is a lack of memory, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch raises a plain RuntimeError where the CPU's memory is at its end.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
