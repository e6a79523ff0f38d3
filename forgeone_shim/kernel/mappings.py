"""Files mapped into this process, and a way to have no more of them than their addresses (mmap(2))."""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAP_FIXED: Final = 0x10
_HOW: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
_NONE: Final = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_size_t
_libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Addresses from ``start`` to before ``end``."""

    start: int
    end: int


def of_file(fd: int) -> tuple[Mapping, ...]:
    """Where the file of a descriptor is mapped, by the name that it has (proc_pid_maps(5)). Raises OSError."""
    name = bytes(Path(f"/proc/self/fd/{fd}").readlink())
    found: list[Mapping] = []
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        addresses, _, _, _, _, *path = line.split(None, 5)
        if path == [name]:
            start, end = (int(one, 16) for one in addresses.split(b"-"))
            # Parts that are protected in different ways.
            if found and found[-1].end == start:
                start = found.pop().start
            found.append(Mapping(start, end))
    return tuple(found)


def withhold(mapping: Mapping) -> None:
    """Have nothing there any more that could be read or run, and never anything else. Raises OSError."""
    size = mapping.end - mapping.start
    if _libc.mmap(mapping.start, size, _NONE, _HOW, -1, 0) != mapping.start:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mmap")
