"""How much freed memory the C library keeps: for training, all of it."""

from __future__ import annotations

import ctypes

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK_BYTES = 2**30


def keep_freed_memory() -> None:
    """Keep large freed blocks for the next step, if the C library is glibc.

    By default glibc returns them to the system after every step, and the system zeroes them again. On 2 cores that
    takes a quarter of a step (small-resnet, 256 images of 28x28 per step: 5.4 s against 4.1 s for 8,192 images).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK_BYTES - 1)
