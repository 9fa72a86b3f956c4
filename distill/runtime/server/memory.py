"""Memory use of long-running servers."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Return freed memory to the operating system.

    Loading a model frees about twice its size, which glibc would keep. Has no effect without glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
