"""How the C library gives memory out."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MB of what it frees, in place of returning it to the system at once.

    A batch's tensors are allocated and freed again and again; where glibc returns them each time, the pages are mapped
    anew and cleared, which takes longer than the work on small images. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, 2**28)
