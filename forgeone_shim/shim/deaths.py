"""A watch for processes that end: one thread for all of them, started by the first."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

import structlog

from forgeone_shim.kernel.procs import Pidfd


class Deaths:
    """Thread-safe. ``on_death(name)`` is called once, in the thread, for a process that ended and was not forgotten."""

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self._log = structlog.get_logger("deaths")
        self._lock = threading.Lock()
        self._held: dict[str, Pidfd] = {}
        self._names: dict[int, str] = {}
        self._epoll: select.epoll | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None

    def follow(self, name: str, process: Pidfd) -> None:
        """Tell of its end; the descriptor is this one's from now on. Another one of that name is followed no more."""
        with self._lock:
            self._drop(name)
            if self._epoll is None:
                self._begin()
            assert self._epoll is not None  # noqa: S101 -- it was begun
            self._held[name] = process
            self._names[process.fileno()] = name
            self._epoll.register(process.fileno(), select.EPOLLIN)

    def forget(self, name: str) -> None:
        """Its end is of no interest any more; one that is not followed is no error."""
        with self._lock:
            self._drop(name)

    def close(self) -> None:
        """End the thread; nothing is told after this returns."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()
        with self._lock:
            for name in list(self._held):
                self._drop(name)
            if self._epoll is not None:
                self._epoll.close()
                os.close(self._wake)
                self._epoll = None

    def _begin(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, args=(self._epoll,), name="deaths", daemon=True)
        self._thread.start()

    def _drop(self, name: str) -> None:
        process = self._held.pop(name, None)
        if process is not None:
            del self._names[process.fileno()]
            if self._epoll is not None:
                self._epoll.unregister(process.fileno())
            process.close()

    def _run(self, epoll: select.epoll) -> None:
        while True:
            for fd, _ in epoll.poll():
                if fd == self._wake:
                    return
                with self._lock:
                    name = self._names.get(fd, "")
                    # The event may be of a descriptor closed since, whose number is another process's by now.
                    if not name or not self._held[name].wait(0):
                        continue
                    self._drop(name)
                try:
                    self._on_death(name)
                except Exception:
                    self._log.exception("a death was told in vain", name=name)
