"""What a forked process is called in ``/proc/PID/cmdline``.

The kernel shows what is in the memory where the arguments of the executed program were, and lets only a privileged
checkpoint name another place (prctl(2), PR_SET_MM), so a title is as long as they were at most.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_NAME: Final = 15
_COMM_MAX: Final = 15
# Of /proc/PID/stat, after the state (proc(5) counts from 1, and the state is the third).
_ARG_START, _ARG_END = 48 - 3, 49 - 3
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Area:
    """The memory of this process's arguments."""

    start: int
    size: int


@functools.cache
def area() -> Area:
    """Where the arguments are, in this process and those it forks; looked at once for all. Raises OSError."""
    text = Path("/proc/self/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    return Area(start, max(0, end - start) if start else 0)


def rename(where: Area, words: Sequence[str]) -> None:
    """Call this process by ``words``, as if they were its arguments, cut to what there is room for."""
    if not where.size:
        return
    title = b"\0".join(word.encode() for word in words)[: where.size - 1]
    ctypes.memset(where.start, 0, where.size)
    ctypes.memmove(where.start, title, len(title))
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(words[0].encode()[:_COMM_MAX]), 0, 0, 0)
