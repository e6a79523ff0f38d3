"""The signals that forgeoned is told things by."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
HANG_UP: Final = signal.SIGHUP


class Signals:
    """Those that came since it was made, also before anybody asks. Made by the main thread, once a process.

    The kernel may hand a signal to any thread, and Python runs its handlers in the main one alone, which would not
    learn of it while it waits for a lock. A byte in a pipe wakes it wherever the signal came in.
    """

    def __init__(self) -> None:
        self._read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*STOP, HANG_UP):
            # A handler, not SIG_IGN: that one would be inherited by every program started from here.
            signal.signal(number, lambda *_: None)

    def until_stop(self, hung_up: Callable[[], object]) -> None:
        """Return when told to stop; call ``hung_up``, which must be quick, for each SIGHUP until then."""
        for number in self._numbers():
            if number in STOP:
                return
            if number == HANG_UP:
                hung_up()

    def _numbers(self) -> Iterator[int]:
        while True:
            yield from os.read(self._read, 64)
