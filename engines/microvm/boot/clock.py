"""How fast the host's time stamp counter counts, which an emulated guest is told (``tsc_early_khz``).

The guest of a busy host fails to measure it, and then hangs or has no use of it. QEMU's emulator gives guests the
host's counter as it is.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition

# rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE: Final = bytes.fromhex("0f3148c1e2204809d0c3")
_SECONDS: Final = 0.1
_TRIES: Final = 16
_CPUINFO: Final = re.compile(r"^cpu MHz\s*: ([0-9.]+)$", re.MULTILINE)


def khz() -> int:
    """Its frequency in kHz, measured for a tenth of a second against the host's clock.

    :raises FailedPrecondition: nothing can be executed from memory, and /proc/cpuinfo does not tell either.
    """
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page[: len(_CODE)] = _CODE
            held = ctypes.c_char.from_buffer(page)
            try:
                return _measured(ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(held)))
            finally:
                # A mapping with a pointer into it cannot be closed.
                del held
    except OSError:
        # What the processor runs at now, which on most is not far from what its counter counts.
        found = _CPUINFO.search(Path("/proc/cpuinfo").read_text())
        if found is None:
            raise FailedPrecondition("the frequency of this host's time stamp counter cannot be found out") from None
        return round(float(found[1]) * 1000)


def _measured(counter: Callable[[], int]) -> int:
    since, first = _read(counter)
    # Not to wait for something, but to have a time to divide by.
    time.sleep(_SECONDS)
    until, last = _read(counter)
    return round((last - first) * 1_000_000 / (until - since))


def _read(counter: Callable[[], int]) -> tuple[int, int]:
    """Nanoseconds and the counter at about the same time: of several readings the quickest."""
    best: tuple[int, int, int] | None = None
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        count = counter()
        took = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - before
        if best is None or took < best[0]:
            best = took, before + took // 2, count
    assert best is not None  # noqa: S101 -- there are tries
    return best[1], best[2]
