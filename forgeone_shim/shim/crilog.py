"""The log format of CRI: ``TIME STREAM TAG TEXT``, a line each; what is long has the tag P until its last part's F."""

from __future__ import annotations

import time
from typing import Final

# As containerd's: what a line is cut to.
LINE_MAX: Final = 16 * 1024
_SECOND: Final = 1_000_000_000


class Clock:
    """Times as they are written (RFC 3339, UTC); the second's part is made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def stamp(self, now: int) -> bytes:
        """``now`` in nanoseconds since the epoch."""
        second, rest = divmod(now, _SECOND)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{rest:09d}Z".encode()


class Lines:
    """One stream's text, as it comes, made into the lines of a log. How it was cut on its way makes no difference."""

    __slots__ = ("_begun", "_full", "_part")

    def __init__(self, stream: str) -> None:
        self._begun = b""
        self._full, self._part = f" {stream} F ".encode(), f" {stream} P ".encode()

    def feed(self, data: bytes, stamp: bytes) -> bytes:
        """What can be written of the text so far: whole lines, and parts of a long one."""
        lines = (self._begun + data if self._begun else data).split(b"\n")
        begun = lines.pop()
        written = b""
        if lines:
            full = stamp + self._full
            if max(map(len, lines)) > LINE_MAX:
                written = b"".join(self._cut(line, stamp) for line in lines)
            else:
                written = full + (b"\n" + full).join(lines) + b"\n"
        # A line of just that length may still end here.
        while len(begun) > LINE_MAX:
            written += stamp + self._part + begun[:LINE_MAX] + b"\n"
            begun = begun[LINE_MAX:]
        self._begun = begun
        return written

    def end(self, stamp: bytes) -> bytes:
        """What is left of a line that was not ended."""
        begun, self._begun = self._begun, b""
        return stamp + self._full + begun + b"\n" if begun else b""

    def _cut(self, line: bytes, stamp: bytes) -> bytes:
        part = stamp + self._part
        pieces = [line[at : at + LINE_MAX] for at in range(0, len(line), LINE_MAX)] or [b""]
        return b"".join([part + piece + b"\n" for piece in pieces[:-1]]) + stamp + self._full + pieces[-1] + b"\n"
