"""The memory that this process may use."""

import os
from contextlib import suppress
from pathlib import Path


def memory_bytes() -> int:
    """The memory limit in bytes: the machine's memory, or the cgroup limit if that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
