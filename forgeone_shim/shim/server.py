"""The fork server: a small process of one thread that forks, which the daemon with its many threads must not.

A thread of such a process may not make a user namespace (unshare(2) refuses it), and a fork of it would copy a large
heap. This process has neither threads nor heap. Its first job are user namespaces: a forked child leaves for the new
one, this process, still privileged outside of it, writes the child's id maps, and the child makes the pod's other
namespaces, which thereby belong to the user namespace. All that the client gets are descriptors, and all that is left
when it gets none is nothing.

It lives as long as somebody is connected, and :data:`IDLE_SECONDS` more, so that a daemon that was killed and is
started again finds it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.shim import messages
from forgeone_shim.shim.messages import Extent, Failed, Finish, Finishing, Made, MakeNamespaces, ProtocolError

LISTENER: Final = 3
IDLE_SECONDS: Final = 60.0
# A child has nothing to wait for but the kernel: one that takes longer never comes back.
_CHILD_SECONDS: Final = 30
_UNSHARED, _MAPPED = b"u", b"m"
_UCRED = struct.Struct("3i")


def main() -> None:
    """Serve on descriptor :data:`LISTENER`, a listening unix socket, until nobody needs it any more."""
    os.chdir("/")
    # Every descriptor of the daemon's is close-on-exec, this one was passed on purpose.
    os.set_inheritable(LISTENER, False)
    Server(socket.socket(fileno=LISTENER)).run(IDLE_SECONDS)


class Server:
    """Serves connections on one thread: nothing here blocks but the poll. Children do the work."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener: socket.socket | None = listener
        self._poll = select.poll()
        self._ready: dict[int, Callable[[], None]] = {}
        listener.setblocking(False)
        self._watch(listener.fileno(), lambda: self._accept(listener))

    def run(self, idle: float) -> None:
        """Serve until told to finish, or until nobody has been connected for ``idle`` seconds."""
        while self._ready:
            alone = self._listener is not None and len(self._ready) == 1
            events = self._poll.poll(idle * 1000 if alone else None)
            if not events and alone:
                self._finish()
            for fd, _ in events:
                # An earlier one of the same round may have let go of it.
                handler = self._ready.get(fd)
                if handler is not None:
                    handler()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._ready[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _leave(self, fd: int) -> None:
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
        self._watch(connection.fileno(), lambda: self._request(connection))

    def _request(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(messages.MESSAGE_MAX + 1)
        except OSError:
            data = b""
        try:
            request = messages.decode_request(data) if data else None
        except ProtocolError:
            request = None
        self._leave(connection.fileno())
        with connection:
            if isinstance(request, MakeNamespaces):
                self._start(connection, request)
            elif isinstance(request, Finish):
                self._finish()
                with contextlib.suppress(OSError):
                    connection.send(messages.encode(Finishing()))

    def _finish(self) -> None:
        if self._listener is not None:
            self._leave(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _start(self, connection: socket.socket, request: MakeNamespaces) -> None:
        """The child answers the client itself: its own copy of the connection is the last one that is open."""
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(theirs.close)
                undo.callback(ours.close)
                pid = os.fork()
            except OSError as error:
                with contextlib.suppress(OSError):
                    connection.send(messages.encode(Failed(step="fork", errno=error.errno or 0)))
                return
            if pid == 0:
                _run_child(connection, theirs, (ours.fileno(), *self._ready), request)
            undo.pop_all()
        theirs.close()
        pidfd = os.pidfd_open(pid)
        self._watch(ours.fileno(), lambda: self._map(ours, pid, request))
        self._watch(pidfd, lambda: self._reap(pidfd, pid))

    def _map(self, sync: socket.socket, pid: int, request: MakeNamespaces) -> None:
        self._leave(sync.fileno())
        with sync, contextlib.suppress(OSError):
            # A child that is gone instead has not been reaped yet, so that its number is still its own.
            if sync.recv(1) == _UNSHARED:
                try:
                    namespaces.write_proc(f"/proc/{pid}/uid_map", _lines(request.uids))
                    namespaces.write_proc(f"/proc/{pid}/gid_map", _lines(request.gids))
                except OSError as error:
                    sync.send(str(error.errno).encode())
                else:
                    sync.send(_MAPPED)

    def _reap(self, pidfd: int, pid: int) -> None:
        self._leave(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)


def _peer(connection: socket.socket) -> int:
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _lines(extents: tuple[Extent, ...]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.length}\n" for one in extents)


class _StepFailed(Exception):
    def __init__(self, step: str, errno: int) -> None:
        super().__init__(step, errno)
        self.step, self.errno = step, errno


def _run_child(
    connection: socket.socket, sync: socket.socket, others: tuple[int, ...], request: MakeNamespaces
) -> None:
    """Runs in the child, and never returns. Whatever is wrong, the client sees at least the end of the connection."""
    try:
        signal.alarm(_CHILD_SECONDS)
        # The end of the parent must be seen, by this child as by whoever waits to be accepted.
        for fd in others:
            os.close(fd)
        connection.setblocking(True)
        try:
            kinds, descriptors = _make(sync, request)
        except _StepFailed as error:
            connection.send(messages.encode(Failed(step=error.step, errno=error.errno)))
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            connection.sendmsg([messages.encode(Made(kinds=kinds))], [rights])
    finally:
        os._exit(0)


def _make(sync: socket.socket, request: MakeNamespaces) -> tuple[tuple[str, ...], list[int]]:
    flags = 0
    for kind in request.kinds:
        flags |= namespaces.KINDS[kind]
    with _step("unshare the user namespace"):
        syscall(number("unshare"), namespaces.CLONE_NEWUSER)
    with _step("map ids"):
        sync.send(_UNSHARED)
        told = sync.recv(16)
    if told != _MAPPED:
        raise _StepFailed("map ids", int(told or 0))
    with _step("become root of the user namespace"):
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    with _step(f"unshare {', '.join(request.kinds)}"):
        if flags:
            syscall(number("unshare"), flags)
    if "uts" in request.kinds and request.hostname:
        with _step("set the host name"):
            socket.sethostname(request.hostname)
    if "net" in request.kinds:
        with _step("raise the loopback interface"):
            namespaces.raise_loopback()
    for path, value in request.sysctls:
        with _step(f"sysctl:{path}"):
            namespaces.write_proc(path, value)
    kinds = ("user", *request.kinds)
    with _step("open the namespaces"):
        return kinds, [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _StepFailed(name, error.errno or 0) from error
