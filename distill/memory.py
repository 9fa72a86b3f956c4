"""When a training needed more memory than there was."""

import torch


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
