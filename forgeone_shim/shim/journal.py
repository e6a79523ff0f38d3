"""What a supervisor does with its container's output: the log in CRI's format, within its limits."""

from __future__ import annotations

import time
from collections.abc import Iterator

from forgeone_shim.shim.crilog import Clock, Lines
from forgeone_shim.shim.logfile import Bucket, Log

# As many bytes as one read takes where no rate says otherwise.
CHUNK = 256 * 1024
_PIECE_MIN = 4096


class Journal:
    """A log of two streams; without a path it keeps nothing. Raises OSError where the file cannot be opened at first;
    later nothing that goes wrong with it stops the container."""

    def __init__(self, path: str, size_max: int, rate: int) -> None:
        self._log = Log(path, size_max) if path else None
        # A file that is begun anew keeps nothing, so what is put into it at once is little of what it may hold.
        self._piece = max(_PIECE_MIN, size_max // 8) if size_max else 0
        self._bucket = Bucket(rate if path else 0, time.monotonic())
        self._limited = bool(rate and path)
        self._clock = Clock()
        self._streams = {1: Lines("stdout"), 2: Lines("stderr")}

    def may_read(self) -> int:
        """How many bytes of output may be taken now; 0: none before :meth:`wait` is over."""
        if not self._limited:
            return CHUNK
        available = self._bucket.available(time.monotonic())
        return 0 if self._bucket.wait() > 0 else min(CHUNK, available)

    def wait(self) -> float | None:
        """Seconds until output may be taken; ``None``: now."""
        return (self._bucket.wait() or None) if self._limited else None

    def lift(self) -> None:
        """No rate any more: the container has ended."""
        self._limited = False

    def write(self, stream: int, data: bytes) -> None:
        """Output of stream 1 or 2."""
        self._put(self._streams[stream].feed(data, self._now()))

    def end(self) -> None:
        """All has come."""
        for lines in self._streams.values():
            self._put(lines.end(self._now()))

    def reopen(self) -> None:
        """Go on in a new file of the same name."""
        if self._log is not None:
            self._log.reopen()

    def close(self) -> None:
        """Let go of the file."""
        if self._log is not None:
            self._log.close()

    def _put(self, written: bytes) -> None:
        if not written or self._log is None:
            return
        self._bucket.take(len(written))
        if self._piece:
            for piece in pieces(written, self._piece):
                self._log.write(piece)
        else:
            self._log.write(written)

    def _now(self) -> bytes:
        return self._clock.stamp(time.time_ns())


def pieces(lines: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, ``size`` bytes of them at a time unless one is longer."""
    at = 0
    while at < len(lines):
        end = lines.rfind(b"\n", at, at + size) + 1 or lines.find(b"\n", at) + 1 or len(lines)
        yield lines[at:end]
        at = end
