"""What a container's process has of its supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterable
from typing import Final

from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.shim.supervision import REASON_MAX, Broken, Ending, Ready, Started, Word, encode, shortened

_PR_SET_PDEATHSIG: Final = 1
# As a number: what is calculated with enumerations costs each process that does it a dozen pages of its own.
_LOOK: Final = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_libc = ctypes.CDLL(None, use_errno=True)
# What by default ends a process and is sent by somebody, in contrast to what its own instructions raise. Real-time
# signals are not among them: to the first process of a PID namespace they mean nothing.
CAUGHT: Final = tuple(
    number
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "STKFLT", "XCPU", "VTALRM", "PROF", "IO", "PWR")
    if (number := getattr(signal, f"SIG{name}", None)) is not None
)


class Channel:
    """Used by one thread. Nothing here fails where the supervisor has gone: then this process is about to, too.

    ``fds`` are descriptors that must stay open.
    """

    def __init__(self, words: socket.socket, wakeup: int, hold: int) -> None:
        self._words, self._hold = words, hold
        self.wakeup: Final = wakeup
        self.fds: Final = (words.fileno(), wakeup, hold)
        self.held = False

    def tether(self) -> None:
        """Have the kernel kill this process when its supervisor dies; for the thread that was forked.

        In force from the beginning, but the kernel forgets it with each change of user or capabilities (prctl(2)), so
        whoever makes such a change says it again after it, and before system calls are filtered. Where the supervisor
        has died meanwhile this does not return.
        """
        if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl PR_SET_PDEATHSIG")
        try:
            gone = self._words.recv(1, _LOOK) == b""
        except BlockingIOError:
            gone = False
        if gone:
            os._exit(128 + signal.SIGKILL)

    def catch(self, signals: Iterable[int] = CAUGHT) -> None:
        """Have each of these signals end the container as by default, even where Python code does not get to run.

        The C-level handler writes the signal's number to :attr:`wakeup`; the supervisor reads it and kills. Needs to be
        called by the main thread.
        """
        signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        for number in signals:
            # By contrast with SIG_IGN this one is heard of; PID 1 of a namespace has no default action.
            signal.signal(number, _nothing)

    def ready(self) -> None:
        """Say that all is made and only the start is missing."""
        self.held = True
        self._say(Ready())

    def failed(self, kind: Kind, message: str) -> None:
        """Say, instead of :meth:`ready`, that it cannot be made; this process should end then."""
        self._say(Broken(error=kind.value, message=shortened(message)))

    def await_start(self) -> None:
        """Wait, after :meth:`ready`, until somebody starts the container."""
        os.read(self._hold, 1)
        os.close(self._hold)
        self._say(Started())

    def ending(self, reason: str, message: str) -> None:
        """Why this process is about to exit, for the container's status; the last word counts."""
        self._say(Ending(reason=shortened(reason, REASON_MAX), message=shortened(message)))

    def _say(self, word: Word) -> None:
        with contextlib.suppress(OSError):
            self._words.send(encode(word), socket.MSG_NOSIGNAL)


def failure(error: BaseException) -> tuple[Kind, str]:
    """What to say of an exception."""
    if isinstance(error, ForgeError):
        return error.kind, str(error)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return Kind.INTERNAL, f"{error.strerror or error}{where}"
    return Kind.INTERNAL, f"{type(error).__name__}: {error}"


def _nothing(*_: object) -> None:
    """A handler must be a function for the C-level one to be installed."""
