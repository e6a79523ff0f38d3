"""Pipes or a terminal of an executed command, held on the client's side: what all engines' consoles have in common."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
from contextlib import ExitStack
from typing import Final

from engines.base import Output, Stdio

_CHUNK: Final = 64 * 1024


class OwnStreams:
    """The part of :class:`engines.base.Console` that is about streams; who made the command knows of its end."""

    def __init__(self) -> None:
        self._outputs: dict[int, Output] = {}
        self._input = -1
        self._terminal = -1

    def _take_terminal(self, master: int, *, stdin: bool) -> None:
        """Hold ``master``, which is this one's from now on."""
        self._terminal = master
        os.set_blocking(master, False)
        self._outputs[master] = Output.STDOUT
        if stdin:
            self._input = master

    def _open_pipes(self, theirs: ExitStack, stdio: Stdio, owner: tuple[int, int] | None = None) -> dict[int, int]:
        """Pipes for the wanted streams; the command's ends by number, which ``theirs`` closes.

        ``owner`` is the user and group that the command's output belongs to.
        """
        ends = {}
        if stdio.stdin:
            ends[0], self._input = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, ends[0])
            os.set_blocking(self._input, False)
        for number, wanted, output in ((1, stdio.stdout, Output.STDOUT), (2, stdio.stderr, Output.STDERR)):
            if wanted:
                read, ends[number] = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, ends[number])
                self._outputs[read] = output
                os.set_blocking(read, False)
                if owner is not None:
                    os.fchown(read, *owner)
        return ends

    @property
    def readers(self) -> tuple[int, ...]:
        """Pipes, or the terminal."""
        return tuple(self._outputs)

    @property
    def writer(self) -> int:
        """The pipe, or the terminal."""
        return self._input

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        """Some output; a terminal whose other side has gone has ended."""
        output = self._outputs[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            # What the master says once no process has the terminal open.
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            del self._outputs[fd]
            if fd != self._terminal:
                os.close(fd)
        return output, data

    def write(self, data: bytes) -> int:
        """How much of ``data`` was taken; all of it when nobody reads any more."""
        if self._input < 0:
            return len(data)
        try:
            return os.write(self._input, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.end_input()
            return len(data)

    def end_input(self) -> None:
        """Close the pipe; a terminal that reads lines, which cannot be half closed, gets what stands for an end."""
        fd, self._input = self._input, -1
        if fd < 0:
            return
        if fd != self._terminal:
            os.close(fd)
            return
        with contextlib.suppress(OSError, termios.error):
            attributes = termios.tcgetattr(fd)
            if attributes[3] & termios.ICANON:
                os.write(fd, attributes[6][termios.VEOF])

    def resize(self, width: int, height: int) -> None:
        """TIOCSWINSZ; no error without a terminal."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def _close_pipes(self) -> None:
        for fd in {self._input, *self._outputs} - {-1, self._terminal}:
            os.close(fd)
        self._input = -1
        self._outputs.clear()

    def _close_terminal(self) -> None:
        """Hangs up on whoever is left at its other side."""
        fd, self._terminal = self._terminal, -1
        if fd >= 0:
            os.close(fd)
