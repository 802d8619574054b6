"""Setting of the C library's allocator that keeps freed memory in the process."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large freed blocks back to the kernel.

    By default every large tensor is mapped and unmapped, and the kernel's clearing of its pages can
    cost more than the operation on it.  With the setting the process keeps its peak size.

    Returns:
        whether this C library has the setting (glibc); without it nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST))
