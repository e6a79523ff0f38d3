"""A container's log as a file: how much may pass, and lines that stay whole where one file follows another.

Needs nothing but Python's standard library.
"""

import contextlib
import os
from pathlib import Path

CHUNK = 65536
# conmon's own; a kubelet and log collectors in its group read it.
_LOG_MODE = 0o640
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Bucket:
    """Tokens, one a byte: ``rate`` of them come a second, at most a second's worth is kept. Rate 0: no limit."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate, self._tokens, self._then = rate, float(rate), now

    def available(self, now: float) -> int:
        """How many bytes may pass now."""
        if not self._rate:
            return CHUNK
        self._tokens = min(float(self._rate), self._tokens + (now - self._then) * self._rate)
        self._then = now
        return int(self._tokens)

    def lift(self) -> None:
        """No limit any more."""
        self._rate = 0

    def take(self, count: int) -> None:
        """So many have passed."""
        self._tokens -= count

    def wait(self) -> float:
        """Seconds until a piece worth reading may pass."""
        worth = min(self._rate, 4096)
        return max(0.0, (worth - self._tokens) / self._rate) if self._rate else 0.0


class Log:
    """The log file. Lines stay whole: a file is only changed for another between two of them."""

    def __init__(self, path: str, size_max: int) -> None:
        self._path, self._size_max = path, size_max
        self._fd = os.open(path, _FLAGS, _LOG_MODE)
        self._size = os.fstat(self._fd).st_size
        self._whole = True
        self._torn = False
        self._reopen = False

    def reopen(self) -> None:
        """Go on in a file of the log's name, once the line is whole."""
        self._reopen = True
        if self._whole:
            with contextlib.suppress(OSError):
                self._switch()

    def close(self) -> None:
        """Nothing more is written."""
        os.close(self._fd)

    def write(self, data: bytes) -> None:
        """Append."""
        if self._reopen or (self._size_max and self._size + len(data) > self._size_max):
            end = data.find(b"\n") + 1
            head, data = (b"", data) if self._whole else (data[:end], data[end:]) if end else (data, b"")
            self._append(head)
            if self._whole:
                # Where a file cannot be begun anew the old one goes on: a log must not stop a container.
                with contextlib.suppress(OSError):
                    if not self._reopen:
                        self._empty()
                    self._switch()
        self._append(data)

    def _append(self, data: bytes) -> None:
        if self._torn:
            # What is left of a line that had no room is dropped too, and what there is of it is ended.
            _, newline, data = data.partition(b"\n")
            data = newline + data
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
        except OSError:
            # A full disk: a log must not stop a container for good.
            self._torn = True
            return
        if data:
            self._whole, self._torn = data.endswith(b"\n"), False

    def _empty(self) -> None:
        # A new file in its place, as conmon does it: who follows the old one sees it end.
        fresh = self._path + ".tmp"
        os.close(os.open(fresh, _FLAGS | os.O_TRUNC, _LOG_MODE))
        Path(fresh).rename(self._path)

    def _switch(self) -> None:
        fd = os.open(self._path, _FLAGS, _LOG_MODE)
        os.close(self._fd)
        self._fd, self._size, self._reopen = fd, os.fstat(fd).st_size, False
        # Tells whoever asked for it and watches.
        os.utime(self._path)
