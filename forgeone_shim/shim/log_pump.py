"""Between conmon and a log file: at most so many bytes a second pass, and a file that grows too large is begun anew.

A program of its own that needs nothing but Python's standard library; its arguments::

    FIFO LOG RATE SIZE_MAX PIDFILE CONTAINER_PIDFILE

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

from forgeone_shim.shim.logfile import CHUNK, Bucket, Log

_COMES_MS = 5000


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
            size = min(may, CHUNK) or 1
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
