"""Gives memory back to the operating system. Processes that handle whole pictures call it when they start."""

import ctypes
from contextlib import suppress

# From glibc's malloc.h.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1024 * 1024


def give_back_large_blocks() -> None:
    """Have this process give back blocks of `LARGE_BYTES` and more as soon as they are freed.

    By default glibc raises that limit to the size of the largest block that it has seen freed, up to 32 MiB, and keeps
    what is smaller: after several large photos at once, gigabytes stay. With another C library nothing happens.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
