"""Gives freed memory back to the operating system. Processes that handle whole pictures call it when they start."""

import ctypes
from contextlib import suppress

# From glibc's malloc.h.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1024 * 1024


def give_back_large_blocks() -> None:
    """Have this process give back blocks of `LARGE_BYTES` and more as soon as they are freed.

    By default glibc raises this limit to the size of the largest block that has been freed, up to 32 MiB, and keeps all
    smaller blocks. After several large photos at once, gigabytes stay with the process. With another C library, this
    function does nothing.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
