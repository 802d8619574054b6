"""Memory that a worker has freed stays with it: a setting of the C library's allocator."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from malloc.h
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large freed blocks back to the kernel.

    By default every large tensor is mapped and unmapped again, and the kernel clearing its
    pages can cost more than the operation on it.  The process then keeps its peak size.

    Returns:
        whether this C library has the setting (glibc; elsewhere nothing is changed).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _MOST))
