"""Locks of files shared with other processes, waited for no longer than the caller waits. See flock(2)."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded

_LONGEST_SECONDS: Final = 60.0


@contextmanager
def locked(path: str | os.PathLike[str], flags: int, mode: int, deadline: Deadline) -> Iterator[None]:
    """Open a file and hold its lock for as long as the block runs.

    :raises DeadlineExceeded: somebody else holds it.
    :raises OSError: it cannot be opened or locked.
    """
    turn = _Turn(os.open(path, flags | os.O_CLOEXEC, mode))
    turn.take(deadline, f"waiting for the lock of {os.fspath(path)}")
    try:
        yield
    finally:
        turn.close()


class _Turn:
    """One wait for a lock. flock(2) has no timeout, so a thread waits where the lock is not free at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._guard = threading.Lock()
        self._known = threading.Event()
        self._has = self._abandoned = False

    def take(self, deadline: Deadline, stage: str) -> None:
        """Wait for the lock; raises as :func:`locked`."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except BaseException:
            self.close()
            raise
        else:
            return
        threading.Thread(target=self._wait, name="flock", daemon=True).start()
        deadline.listen(self._known.set)
        try:
            self._known.wait(deadline.remaining(_LONGEST_SECONDS))
        finally:
            deadline.ignore(self._known.set)
        with self._guard:
            if self._has:
                return
            self._abandoned = True
        raise DeadlineExceeded(f"gave up {stage}")

    def _wait(self) -> None:
        got = False
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            got = True
        with self._guard:
            # Whoever gave up left the descriptor to this thread.
            self._has = got and not self._abandoned
            if not self._has:
                self.close()
        self._known.set()

    def close(self) -> None:
        """Let go of the lock, and of the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
