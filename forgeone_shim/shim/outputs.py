"""A container's standard streams: pipes or a terminal, read into its log and for whoever is attached."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import struct
import termios
from typing import Final

from forgeone_shim.shim.journal import CHUNK, Journal
from forgeone_shim.shim.loop import READ, Loop
from forgeone_shim.shim.streams import Attachments

# Pages of it are only taken when they are needed.
_PIPE_SIZE: Final = 256 * 1024
# A pipe of that size, and a terminal, of which a read gives a page or less.
_DRAIN_READS: Final = 64


class Outputs:
    """``attached`` is to call :meth:`flow` when somebody has taken what waited for him."""

    def __init__(self, loop: Loop, journal: Journal) -> None:
        self._loop, self._journal = loop, journal
        self._attached: Attachments
        self._terminal = -1
        self._streams: dict[int, int] = {}

    def pipes(self, attached: Attachments, *, stdin: bool, once: bool) -> tuple[int, int, int]:
        """Returns the container's ends, which are the caller's to close."""
        self._attached = attached
        if stdin:
            first, write = os.pipe2(os.O_CLOEXEC)
            attached.take_input(write, terminal=False, once=once)
        else:
            first = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return first, self._pipe(1), self._pipe(2)

    def _pipe(self, stream: int) -> int:
        read, write = os.pipe2(os.O_CLOEXEC)
        # Beyond a user's limit (pipe(7)) it stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._add(read, stream)
        return write

    def terminal(self, attached: Attachments, *, stdin: bool, once: bool) -> tuple[int, int, int]:
        """As :meth:`pipes`, one end for all."""
        self._attached = attached
        master, slave = os.openpty()
        self._terminal = master
        self._add(master, 1)
        if stdin:
            attached.take_input(fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 0), terminal=True, once=once)
        return slave, slave, slave

    def _add(self, fd: int, stream: int) -> None:
        os.set_blocking(fd, False)
        self._streams[fd] = stream
        self._loop.watch(fd, functools.partial(self._readable, fd))

    def resize(self, rows: int, columns: int) -> None:
        """Of the terminal, if there is one; a size that is none is passed over."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError, struct.error):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def flow(self) -> None:
        """Output waits while the log's rate or somebody attached does not take it."""
        events = READ if self._journal.may_read() and not self._attached.full else 0
        for fd in self._streams:
            self._loop.change(fd, events)

    def drain(self) -> None:
        """What is left once nobody writes any more; no rate holds it back."""
        self._journal.lift()
        for fd in tuple(self._streams):
            for _ in range(_DRAIN_READS):
                if not self._read(fd, CHUNK):
                    break
        self._journal.end()

    def _readable(self, fd: int, _: int) -> None:
        # What was read of the other stream may have been all that the rate allows.
        size = self._journal.may_read()
        if size:
            self._read(fd, size)

    def _read(self, fd: int, size: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return False
        except OSError as error:
            # What a terminal says once no process has it open.
            if error.errno != errno.EIO:
                raise
            data = b""
        stream = self._streams[fd]
        if not data:
            self._loop.leave(fd)
            del self._streams[fd]
            # A terminal that is closed hangs up on whoever opens it again.
            if fd != self._terminal:
                os.close(fd)
            return False
        self._journal.write(stream, data)
        self._attached.send(stream, data)
        return True
