"""How a training run ends: an exit status and one line of text. Imports no torch."""

from dataclasses import dataclass
from typing import Final

from distill.errors import Interrupted, UserError

SUCCEEDED: Final = 0
FAILED: Final = 1
OUT_OF_MEMORY: Final = 71
INTERRUPTED: Final = 75  # --resume continues
OUT_OF_MEMORY_TEXTS: Final = (  # in messages of the allocator of a CPU, of CUDA and of cuBLAS
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Outcome:
    """The exit status of `distill train`, and what it prints last on standard error."""

    status: int
    message: str = ""


def outcome_of(error: BaseException, batch_size: int) -> Outcome | None:
    """The outcome of a run that raised `error`; None for a bug."""
    if isinstance(error, Interrupted):
        stopped = f"stopped; {error}" if str(error) else "stopped"
        return Outcome(
            INTERRUPTED, f"distill: {stopped}; continue with the same command and --resume"
        )
    if isinstance(error, UserError):
        return Outcome(FAILED, f"distill: {error}")
    if is_out_of_memory(error):
        return Outcome(
            OUT_OF_MEMORY,
            f"distill: out of memory with a batch_size of {batch_size}: use a smaller one, or a "
            "machine with more memory",
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` reports a lack of memory, of a GPU or of the machine."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError; for other memory torch raises a plain one.
    is_allocator = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (
        is_allocator or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    )
