"""The main memory of this machine."""

import os
from contextlib import suppress
from pathlib import Path


def memory_bytes() -> int:
    """The bytes that this process may use: the machine's, or fewer where it is limited."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
