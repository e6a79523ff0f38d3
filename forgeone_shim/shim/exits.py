"""Learns of containers' ends from their supervisors' exit files, written once for every engine.

A supervisor writes ``<exits>/<container id>`` holding the exit code. Should a supervisor die before it could, the end
of the container's first process is seen through its pidfd and reported as lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.kernel.inotify import DirectoryEvents

# How long a supervisor may take from its container's death to the exit file: it drains the output first.
GRACE = 3.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended; ``at`` in nanoseconds since the epoch. ``lost``: nobody was there to read the code."""

    code: int
    at: int
    lost: bool = False


LOST_CODE = 255


def read_exit(exits: Path, container_id: str) -> Exit | None:
    """The exit file's content, or ``None`` while there is none."""
    path = exits / container_id
    try:
        with path.open("rb") as file:
            text = file.read(64)
            at = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return Exit(int(text), at)
    except ValueError:
        return Exit(LOST_CODE, at, lost=True)


class ExitWatch:
    """One thread; ``on_exit(container_id, exit)`` is called in it, once or more for each end."""

    def __init__(self, exits: Path, on_exit: Callable[[str, Exit], None]) -> None:
        self._exits, self._on_exit = exits, on_exit
        self._events = DirectoryEvents(exits)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._events.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._pidfds: dict[int, str] = {}
        self._by_id: dict[str, int] = {}
        self._suspects: dict[str, float] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def follow(self, container_id: str, pid: int) -> None:
        """Also notice the end of ``pid`` when no exit file follows it. A pid that is gone already counts as ended."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._suspect(container_id)
            return
        with self._lock:
            if container_id in self._by_id:
                os.close(fd)
                return
            self._pidfds[fd] = container_id
            self._by_id[container_id] = fd
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def forget(self, container_id: str) -> None:
        """Stop following; safe to repeat."""
        with self._lock:
            self._suspects.pop(container_id, None)
            fd = self._by_id.pop(container_id, None)
            if fd is not None:
                del self._pidfds[fd]
                self._epoll.unregister(fd)
                os.close(fd)

    def close(self) -> None:
        """End the thread; no callback runs after this returns."""
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for container_id in list(self._by_id):
            self.forget(container_id)
        self._epoll.close()
        self._events.close()
        os.close(self._wake)

    def _suspect(self, container_id: str) -> None:
        with self._lock:
            self._suspects[container_id] = time.monotonic() + GRACE
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closed:
            for fd, _ in self._epoll.poll(self._timeout()):
                if fd == self._events.fileno():
                    self._read_directory()
                elif fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                else:
                    with self._lock:
                        container_id = self._pidfds.get(fd)
                        if container_id is not None:
                            self._suspects[container_id] = time.monotonic() + GRACE
            self._settle_suspects()

    def _timeout(self) -> float | None:
        with self._lock:
            if not self._suspects:
                return None
            return max(0.0, min(self._suspects.values()) - time.monotonic())

    def _read_directory(self) -> None:
        seen = self._events.read()
        names = [path.name for path in self._exits.iterdir()] if seen.overflow else seen.names
        for name in names:
            found = read_exit(self._exits, name)
            if found is not None:
                self.forget(name)
                self._on_exit(name, found)

    def _settle_suspects(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [container_id for container_id, at in self._suspects.items() if at <= now]
        for container_id in due:
            found = read_exit(self._exits, container_id) or Exit(LOST_CODE, time.time_ns(), lost=True)
            self.forget(container_id)
            self._on_exit(container_id, found)
