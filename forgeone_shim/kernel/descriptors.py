"""Descriptors of a forked child."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

from forgeone_shim.kernel.syscalls import CLOSE_RANGE, syscall

_LAST: Final = 2**32 - 1


def close_all_but(keep: Collection[int]) -> None:
    """Close every other descriptor of this process, known to Python or not (close_range(2))."""
    first = 0
    for fd in sorted({fd for fd in keep if fd >= 0}):
        if fd > first:
            syscall(CLOSE_RANGE, first, fd - 1, 0)
        first = fd + 1
    syscall(CLOSE_RANGE, first, _LAST, 0)


def open_descriptors() -> frozenset[int]:
    """Every descriptor of this process."""
    found = {int(entry.name) for entry in os.scandir("/proc/self/fd")}
    # That of the listing is among them, and closed by now.
    return frozenset(fd for fd in found if _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
