"""Learns of containers' ends from their supervisors' exit files, written once for every engine.

A supervisor writes ``<exits>/<container id>`` holding the exit code. Should a supervisor die before it could, the end
of the container's first process is seen through its pidfd and reported as lost. A supervisor that dies while its
container lives on is seen through a pidfd too: nobody would read such a container's output or learn its exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from forgeone_shim.kernel.inotify import DirectoryEvents
from forgeone_shim.kernel.procs import Pidfd, open_process

# How long a supervisor may take from its container's death to the exit file: it drains the output first.
GRACE = 3.0
_AGAIN = 0.5
# One that is alive is given so many times as long: on a busy host it may be late, and only it knows the code.
_LATE = 20
_CONTENT_MAX = 64 * 1024


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


def find_supervisor(bundle: Path, container_id: str) -> Pidfd | None:
    """The process of the bundle's ``conmon.pid``, if it lives and still is the one meant.

    That is one that names the container in its command line, or, where the file has a start time too, began then: one
    that supervises several containers does not name them all.

    :raises FileNotFoundError: there is no such file, and so no such process to watch.
    """
    text = _content(f"{bundle}/conmon.pid")
    pid, started = _identity(text)
    if started:
        return open_process(pid, started)
    if not pid:
        return None
    try:
        held = Pidfd(pid)
    except ProcessLookupError:
        return None
    # Whatever else goes wrong (no descriptor left) does not say that it is dead: its container would be ended for that.
    try:
        # Of a process that has exited this is empty, reaped or not.
        words = _content(f"/proc/{held.pid}/cmdline")
    except (FileNotFoundError, ProcessLookupError):
        words = b""
    except BaseException:
        held.close()
        raise
    if container_id.encode() in words:
        return held
    held.close()
    return None


def _identity(text: bytes) -> tuple[int, int]:
    """A process and its start time; 0 where there is none."""
    words = text.split()
    if len(words) not in (1, 2) or not all(word.isdigit() for word in words):
        return 0, 0
    return int(words[0]), int(words[1]) if len(words) == 2 else 0


def _content(path: str) -> bytes:
    # Once for each container that starts: a file object would cost as much again as all the rest.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _CONTENT_MAX)
    finally:
        os.close(fd)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class ExitWatch:
    """One thread; ``on_exit(container_id, exit)`` is called in it, once or more for each end.

    ``supervisor(container_id)`` finds the container's supervisor while it lives; FileNotFoundError says that there is
    none to watch. ``on_orphan(container_id)`` is called, in the thread too, when it has died and the container has not;
    whoever is told ends the container. Nothing that goes wrong ends the thread.
    """

    def __init__(
        self,
        exits: Path,
        on_exit: Callable[[str, Exit], None],
        supervisor: Callable[[str], Pidfd | None] = lambda _: None,
        on_orphan: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._exits, self._on_exit, self._supervisor, self._on_orphan = exits, on_exit, supervisor, on_orphan
        self._log = structlog.get_logger("exits")
        self._events = DirectoryEvents(exits)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._events.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._pidfds: dict[int, str] = {}
        self._by_id: dict[str, int] = {}
        self._guards: dict[int, str] = {}
        self._guard_of: dict[str, Pidfd] = {}
        self._orphans: set[str] = set()
        # Their supervisors have died: what they have not written by now nobody writes any more.
        self._deserted: set[str] = set()
        self._suspects: dict[str, float] = {}
        self._patience: dict[str, int] = {}
        self._missed = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def follow(self, container_id: str, pid: int) -> None:
        """Also notice the end of ``pid`` when no exit file follows it, and the end of its supervisor before its own.

        A pid that is gone already counts as ended.
        """
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
        self._guard(container_id)

    def _guard(self, container_id: str) -> None:
        try:
            guard = self._supervisor(container_id)
        except FileNotFoundError:
            return
        with self._lock:
            if guard is None:
                self._orphans.add(container_id)
            elif container_id not in self._by_id:
                guard.close()
            else:
                self._guards[guard.fileno()] = container_id
                self._guard_of[container_id] = guard
                self._epoll.register(guard.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        if guard is None:
            os.eventfd_write(self._wake, 1)

    def forget(self, container_id: str) -> None:
        """Stop following; safe to repeat."""
        with self._lock:
            self._suspects.pop(container_id, None)
            self._patience.pop(container_id, None)
            self._orphans.discard(container_id)
            self._deserted.discard(container_id)
            self._drop_guard(container_id)
            fd = self._by_id.pop(container_id, None)
            if fd is not None:
                del self._pidfds[fd]
                self._epoll.unregister(fd)
                os.close(fd)

    def _drop_guard(self, container_id: str) -> None:
        guard = self._guard_of.pop(container_id, None)
        if guard is not None:
            del self._guards[guard.fileno()]
            self._epoll.unregister(guard.fileno())
            guard.close()

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

    def _desert(self, container_id: str) -> None:
        self._orphans.add(container_id)
        self._deserted.add(container_id)
        if container_id in self._suspects:
            self._suspects[container_id] = time.monotonic()

    def _suspect(self, container_id: str) -> None:
        with self._lock:
            self._suspects[container_id] = time.monotonic() + GRACE
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception:
                # An end that is missed would leave its container running forever, so everything is looked at again.
                self._log.exception("looked for ends in vain")
                self._missed = True
                time.sleep(_AGAIN)

    def _turn(self) -> None:
        for fd, _ in self._epoll.poll(self._timeout()):
            if fd == self._events.fileno():
                self._read_directory()
            elif fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            else:
                self._process_ended(fd)
        if self._missed:
            self._look_at_all()
        self._settle_suspects()
        self._settle_orphans()

    def _process_ended(self, fd: int) -> None:
        with self._lock:
            # The event may be of a descriptor closed since, whose number is another process's by now.
            if not ((fd in self._pidfds or fd in self._guards) and _readable(fd)):
                return
            container_id = self._pidfds.get(fd)
            if container_id is not None:
                waits = 0.0 if container_id in self._deserted else GRACE
                self._suspects[container_id] = time.monotonic() + waits
            else:
                self._desert(self._guards[fd])
                self._drop_guard(self._guards[fd])

    def _timeout(self) -> float | None:
        with self._lock:
            if self._missed:
                return 0.0
            if not self._suspects:
                return None
            return max(0.0, min(self._suspects.values()) - time.monotonic())

    def _read_directory(self) -> None:
        # Until all of it is dealt with: what was read here is not reported again.
        self._missed, before = True, self._missed
        seen = self._events.read()
        if not seen.overflow:
            self._report(seen.names)
            self._missed = before

    def _look_at_all(self) -> None:
        self._report([path.name for path in self._exits.iterdir()])
        self._missed = False

    def _report(self, names: Iterable[str]) -> None:
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
            found = read_exit(self._exits, container_id)
            if found is None and self._late(container_id, now):
                continue
            found = found or Exit(LOST_CODE, time.time_ns(), lost=True)
            self.forget(container_id)
            self._on_exit(container_id, found)

    def _settle_orphans(self) -> None:
        with self._lock:
            orphans = [id_ for id_ in self._orphans if id_ in self._by_id and not _readable(self._by_id[id_])]
            self._orphans.clear()
        for container_id in orphans:
            # One that ended as it should had its supervisor write this before it went.
            if read_exit(self._exits, container_id) is None:
                self._on_orphan(container_id)

    def _supervised(self, container_id: str) -> bool:
        try:
            held = self._supervisor(container_id)
        except FileNotFoundError:
            return False
        if held is None:
            return False
        held.close()
        return True

    def _late(self, container_id: str, now: float) -> bool:
        """Whether the supervisor lives and is given more time."""
        with self._lock:
            tries = self._patience[container_id] = self._patience.get(container_id, 0) + 1
        if tries >= _LATE or not self._supervised(container_id):
            return False
        with self._lock:
            if container_id in self._suspects:
                self._suspects[container_id] = now + GRACE
        return True
