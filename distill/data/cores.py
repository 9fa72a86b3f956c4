"""The CPU cores that this process may use."""

import os


def usable_cores() -> int:
    """The number of cores that this process may use; macOS only tells how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
