"""This process's terminal in the hands of a remote one: raw, told of its size, and given back as it was."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# What would end this process without a word and leave the terminal raw.
_ENDINGS = (signal.SIGHUP, signal.SIGQUIT)


class Terminal:
    """The terminal on ``fd`` while it is raw; :attr:`resized` becomes readable when its size changes."""

    def __init__(self, fd: int, resized: int) -> None:
        self._fd, self.resized = fd, resized

    def size(self) -> tuple[int, int] | None:
        """Columns and rows, ``None`` where it does not tell."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.resized)
        try:
            found = os.get_terminal_size(self._fd)
        except OSError:
            return None
        return (found.columns, found.lines) if found.columns and found.lines else None


@contextmanager
def raw(fd: int) -> Iterator[Terminal]:
    """Each key goes through as it is, none is a signal here; whatever ends the block, the terminal is as before."""
    before = termios.tcgetattr(fd)
    resized = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    handlers = {number: signal.signal(number, _ended) for number in _ENDINGS}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: os.eventfd_write(resized, 1))
    # A shell that took the terminal back would have us stopped for restoring it.
    handlers[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        # What was typed ahead is for the remote side.
        tty.setraw(fd, termios.TCSADRAIN)
        yield Terminal(fd, resized)
    finally:
        # A second signal must not come between; it ends this process right after.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, *_ENDINGS))
        # A terminal may have hung up. Now, not after what is written has been read: its reader may be gone.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(resized)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _ended(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
