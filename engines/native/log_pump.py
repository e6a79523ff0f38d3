"""Between conmon and a log file: at most so many bytes a second pass, and a file that grows too large is begun anew.

A program of its own that needs nothing but Python's standard library, started by :mod:`engines.native.logs`::

    log_pump.py FIFO LOG RATE SIZE_MAX PIDFILE CONTAINER_PIDFILE

It reads what conmon writes into the FIFO until conmon has gone. While it does not read, conmon waits, and so does the
container when its pipe is full: nothing is lost. Once the container's first process has ended, the rest passes at once.
SIGHUP makes it open the log file anew, after the line it is in. Its standard input is a lifeline: it ends when the
container is created, or when nobody will come any more.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_CHUNK = 65536
_COMES_MS = 5000
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
            return _CHUNK
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


def pump(fifo: int, lifeline: int, wakeup: int, log: Log, bucket: Bucket, *, container: str) -> None:
    """Pass on until the writers of ``fifo`` have gone."""
    first = -1
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    listening = came = False
    while True:
        may = bucket.available(time.monotonic())
        waiting = bucket.wait()
        if listening != (waiting <= 0):
            listening = not listening
            if listening:
                poll.register(fifo, select.POLLIN)
            else:
                poll.unregister(fifo)
        ready = {fd for fd, _ in poll.poll(None if listening else int(waiting * 1000) + 1)}
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 64)
            log.reopen()
        if lifeline in ready:
            poll.unregister(lifeline)
            first = _first_process(container)
            if first >= 0:
                poll.register(first, select.POLLIN)
            else:
                bucket.lift()
        if first in ready:
            poll.unregister(first)
            bucket.lift()
        if fifo in ready or lifeline in ready:
            size = min(may, _CHUNK) or 1
            try:
                data = os.read(fifo, size)
                if not (data or came):
                    # conmon may be on its way although who started it has been killed, and would wait forever for
                    # somebody to read.
                    late = select.poll()
                    late.register(fifo, select.POLLIN)
                    late.poll(_COMES_MS)
                    data = os.read(fifo, size)
            except BlockingIOError:
                came = True
                continue
            came = True
            if not data:
                return
            log.write(data)
            bucket.take(len(data))


def _first_process(pidfile: str) -> int:
    """Becomes readable when the container's first process ends; -1: it has."""
    try:
        return os.pidfd_open(int(Path(pidfile).read_text()))
    except (OSError, ValueError):
        return -1


def main() -> None:
    """See the module."""
    fifo_path, log_path, rate, size_max, pidfile, container = sys.argv[1:]
    fifo = os.open(fifo_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    log = Log(log_path, int(size_max))
    wakeup, alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    signal.signal(signal.SIGHUP, lambda *_: None)
    # Whoever started this waits for the first process: when that ends, the second is ready.
    pid = os.fork()
    if pid:
        Path(pidfile).write_text(str(pid))
        os._exit(0)
    pump(fifo, 0, wakeup, log, Bucket(int(rate), time.monotonic()), container=container)


if __name__ == "__main__":
    main()
