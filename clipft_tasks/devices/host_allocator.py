"""The C library's allocator, where it is glibc: what it keeps for the next allocation."""

import ctypes


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next allocation, where it is glibc.

    It gives large tensors back to the system at once, and clearing their pages anew at each use takes as long as the
    arithmetic of a training step (bench/layout.py). `Device.release` still gives everything back.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` kept."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


_libc = ctypes.CDLL(None)
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h
