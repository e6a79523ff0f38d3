"""Processes held by pidfd: a number that cannot come to mean another process."""

from __future__ import annotations

import errno
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_STAT_MAX = 4096
# linux/sched.h
_PF_EXITING = 0x4


@dataclass(frozen=True, slots=True)
class Stat:
    """The parts of ``/proc/PID/stat`` that tell one process from another; ``started`` is in clock ticks since boot.

    ``exiting``: it runs no more, and may yet wait, as the first of a PID namespace does for all others in it.
    """

    state: str
    parent: int
    started: int
    exiting: bool = False

    @property
    def dead(self) -> bool:
        """Whether the process has exited, reaped or not."""
        return self.state in "ZXx"


def parse_stat(text: str) -> Stat:
    """Read a ``/proc/PID/stat`` line; the command's name may hold spaces and parentheses (proc(5))."""
    fields = text[text.rindex(")") + 2 :].split()
    exiting = bool(int(fields[6]) & _PF_EXITING)
    return Stat(state=fields[0], parent=int(fields[1]), started=int(fields[19]), exiting=exiting)


def stat(pid: int) -> Stat | None:
    """The process of that number now, ``None`` if there is none."""
    try:
        # Read by every look at a container: a file object would cost more than all the rest.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_stat(os.read(fd, _STAT_MAX).decode(errors="replace"))
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None


class Pidfd:
    """An open pidfd; close it, or use it as a context manager."""

    __slots__ = ("_fd", "pid")

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self._fd = -1
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except OSError as error:
            # The number is no process's any more, but its session's or its group's, or a thread's. (Linux up to 6.14
            # says EINVAL, later ones ENOENT.)
            if error.errno in (errno.EINVAL, errno.ENOENT) and pid > 0:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
            raise

    def fileno(self) -> int:
        """The descriptor; readable once the process has exited."""
        return self._fd

    def send(self, number: int) -> bool:
        """Signal the process; ``False`` when it is gone already."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout: float | None) -> bool:
        """Wait until the process (of anyone) has exited; ``False`` when ``timeout`` seconds pass first."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999))))

    def close(self) -> None:
        """Give the descriptor back; again is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def open_process(pid: int, started: int | None = None) -> Pidfd | None:
    """A pidfd of the process that bears ``pid`` and (unless ``None``) started at tick ``started``.

    ``None`` when that one is gone or a zombie, even if the number belongs to another process by now. The look at its
    start time comes after the descriptor is held, so the answer cannot go stale in between.
    """
    if pid <= 0:
        return None
    try:
        held = Pidfd(pid)
    except ProcessLookupError:
        return None
    seen = stat(pid)
    if seen is None or seen.dead or (started is not None and seen.started != started):
        held.close()
        return None
    return held


def of_pidfile(path: Path, word: str, programs: tuple[str, ...] = ("",)) -> Pidfd | None:
    """The process that a pid file names, if it lives and still is the one meant.

    That is one with ``word`` among its arguments and, if given, a first one that ends with one of ``programs``.
    """
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    held = open_process(pid)
    if held is None:
        return None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    if os.fsencode(word) in words and words[0].endswith(tuple(map(os.fsencode, programs))):
        return held
    held.close()
    return None
