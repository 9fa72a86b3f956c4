"""Memory of a server that runs for weeks."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    Loading a model frees about twice its size, in pieces that glibc would keep. No effect without
    glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
