"""Configuration of glibc's memory allocator that speeds up the creation of large CPU tensors."""

from __future__ import annotations

import ctypes
import platform

# Python cannot read C headers, so the numbers of M_TRIM_THRESHOLD and M_MMAP_MAX are copied here
# from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it to the kernel.

    By default, the memory of each large tensor is mapped when it is created and unmapped when it is
    freed.  The kernel clears newly mapped pages, which can take longer than the computation on
    them.  With this setting, the memory use of the process never falls below its peak.

    Returns:
        True if the setting took effect; False if the C library is not glibc or refused it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST))
