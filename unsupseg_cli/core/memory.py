"""Memory that was freed and will be needed again at once."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's <malloc.h>
_KEPT = 256 << 20
_FROM_SYSTEM = 32 << 20  # larger arrays are given back one by one: the most that glibc sets by itself


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it freed, instead of giving them back to the system.

    On a CPU every layer of a network frees what the next one takes, and the system clears each page that it hands
    out: by itself glibc gives back and takes tens of megabytes in every step. What is set by hand
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) holds; other C libraries are left as they are.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _FROM_SYSTEM)
    mallopt(_TRIM_THRESHOLD, _KEPT)
