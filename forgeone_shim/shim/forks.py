"""The generic fork server: a small process of one thread that forks, which the daemon with its many threads must not.

What it forks for is its handler's: a program is a module whose ``main`` calls :func:`serve` with one. Nothing of it
blocks but the poll, so a handler answers quickly or forks.

A server lives as long as somebody is connected (each daemon holds one idle connection), and a while more, so that a
daemon that was killed and is started again finds it. Children that last do not keep it: they outlive it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.shim import titles, wire
from forgeone_shim.shim.wire import Ended, Message, ProtocolError

LISTENER: Final = 3
IDLE_SECONDS: Final = 60.0
# Descriptors that children, however many there are, leave for requests.
_SPARE: Final = 128
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Answer:
    """Said by the server itself, at once. ``fds`` go with it and are closed then."""

    data: bytes
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What a request needs a child for.

    ``child`` runs in it with the connection (blocking), and with no descriptor of the server's but that, the request's,
    ``keep`` and 0 to 2; the process ends when it returns or raises. The request's descriptors are closed in the server.
    ``lasts``: the child outlives its request; it does not keep the server from ending. ``failed`` makes the answer for
    a fork that the kernel refuses. ``started(server, pid)`` is called in the server once there is a child, ``undo``
    instead of it where there is none.
    """

    child: Callable[[socket.socket], None]
    failed: Callable[[OSError], bytes]
    lasts: bool = False
    keep: Collection[int] = ()
    started: Callable[[Server, int], None] | None = None
    undo: Callable[[], None] | None = None


class Handler(Protocol):
    """A program's part of a fork server."""

    def __call__(self, data: bytearray, fds: list[int], /) -> Answer | Fork | None:
        """What becomes of a request. ``None``, as any exception, ends its connection without a word.

        ``data`` is wiped in the server once the request is dealt with. What in it is a secret only the child should
        decode (``msgspec.Raw`` is a view of it), as what is decoded leaves copies behind.
        Descriptors that it wants to keep it takes out of ``fds``; the others are closed once the request is dealt with.
        """


@dataclass(slots=True)
class _Watched:
    handle: Callable[[], None]
    holds: bool = field(default=True)


def serve(handler: Handler) -> None:
    """Serve on descriptor :data:`LISTENER`, a listening unix socket, until nobody needs it any more."""
    os.chdir("/")
    # Every descriptor of the daemon's is close-on-exec, this one was passed on purpose.
    os.set_inheritable(LISTENER, False)
    # So that no child looks.
    titles.area()
    Server(socket.socket(fileno=LISTENER), handler).run(IDLE_SECONDS)


class Server:
    """Serves connections on one thread. Children do the work."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self._listener: socket.socket | None = listener
        self._handler = handler
        self._poll = select.poll()
        self._ready: dict[int, _Watched] = {}
        self._unwatched: list[int] = []
        listener.setblocking(False)
        self.watch(listener.fileno(), lambda: self._accept(listener))

    def run(self, idle: float) -> None:
        """Serve until told to finish, or until nobody has been connected for ``idle`` seconds."""
        while (holding := sum(one.holds for one in self._ready.values())) > 0:
            alone = self._listener is not None and holding == 1
            events = self._poll.poll(idle * 1000 if alone else None)
            if not events and alone:
                self._finish()
            for fd, _ in events:
                # An earlier one of the same round may have let go of it.
                watched = self._ready.get(fd)
                if watched is not None:
                    watched.handle()

    def watch(self, fd: int, handle: Callable[[], None], *, holds: bool = True) -> None:
        """Have ``handle`` called when ``fd`` is readable. The server does not end while one that ``holds`` is left."""
        self._ready[fd] = _Watched(handle, holds)
        self._poll.register(fd, select.POLLIN)

    def leave(self, fd: int) -> None:
        """The inverse of :meth:`watch`; again is no error."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if _peer(connection) != os.geteuid():
            connection.close()
            return
        self.watch(connection.fileno(), lambda: self._request(connection))

    def _request(self, connection: socket.socket) -> None:
        self.leave(connection.fileno())
        with connection:
            try:
                message = wire.receive(connection)
            except (Ended, ProtocolError, OSError):
                return
            if message.finish:
                self._finish()
                with contextlib.suppress(OSError):
                    wire.send_finishing(connection)
                return
            try:
                self._handle(connection, message)
            finally:
                message.close()
                # What one child was told is not to be found in the memory of those that are forked later.
                message.wipe()

    def _finish(self) -> None:
        if self._listener is not None:
            self.leave(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _handle(self, connection: socket.socket, message: Message) -> None:
        try:
            outcome = self._handler(message.data, message.fds)
        except Exception:
            # A request that this program cannot take must not end it for the others.
            return
        if isinstance(outcome, Answer):
            try:
                with contextlib.suppress(OSError, ProtocolError):
                    wire.send(connection, outcome.data, outcome.fds)
            finally:
                wire.close_all(outcome.fds)
        elif isinstance(outcome, Fork):
            self._fork(connection, message, outcome)

    def _fork(self, connection: socket.socket, message: Message, fork: Fork) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            if fork.undo is not None:
                fork.undo()
            with contextlib.suppress(OSError, ProtocolError):
                wire.send(connection, fork.failed(error))
            return
        if pid == 0:
            _run(connection, (connection.fileno(), *message.fds, *fork.keep), fork.child)
        self._reap_unwatched()
        pidfd = _pidfd(pid)
        if pidfd < 0:
            # It has what it needs itself, and is reaped with another one.
            self._unwatched.append(pid)
        if fork.started is not None:
            fork.started(self, pid)
        if pidfd >= 0:
            self.watch(pidfd, lambda: self._reap(pidfd, pid), holds=not fork.lasts)

    def _reap(self, pidfd: int, pid: int) -> None:
        self.leave(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        self._reap_unwatched()

    def _reap_unwatched(self) -> None:
        self._unwatched = [other for other in self._unwatched if os.waitpid(other, os.WNOHANG)[0] == 0]


def _pidfd(pid: int) -> int:
    """-1: there are no more descriptors than those that requests need."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    if fd < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE:
        return fd
    os.close(fd)
    return -1


def _run(connection: socket.socket, keep: Collection[int], child: Callable[[socket.socket], None]) -> None:
    """Runs in the child, and never returns. Whatever is wrong, the client sees at least the end of the connection."""
    try:
        # The end of the server must be seen by whoever waits to be accepted, and of each client by its own child.
        close_all_but((0, 1, 2, *keep))
        connection.setblocking(True)
        child(connection)
    finally:
        os._exit(0)


def _peer(connection: socket.socket) -> int:
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
