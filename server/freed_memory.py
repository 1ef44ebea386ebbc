"""Memory that the server has freed goes back to the system at once."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 2**20  # bytes


def give_back_freed_memory() -> None:
    """From now on the system keeps no freed block of a megabyte or more in this process.

    glibc keeps blocks of up to 32 MB once one of their size was freed (mallopt(3), M_MMAP_THRESHOLD): a server, which
    holds a few models for a moment in each round, then takes half as much again, and how much is chance. Not for a
    process that trains, which frees and takes large blocks at each step. Without effect where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGE)
