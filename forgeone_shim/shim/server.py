"""The fork server of user namespaces, which no thread of a process with several can make (unshare(2) refuses it).

A forked child leaves for the new user namespace, this process, still privileged outside of it, writes the child's id
maps, and the child makes the pod's other namespaces, which thereby belong to the user namespace. All that the client
gets are descriptors, and all that is left when it gets none is nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Final

from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.shim import forks, messages, wire
from forgeone_shim.shim.forks import Fork, Server
from forgeone_shim.shim.messages import Extent, Failed, Made, MakeNamespaces

# A child has nothing to wait for but the kernel: one that takes longer never comes back.
_CHILD_SECONDS: Final = 30
_UNSHARED, _MAPPED = b"u", b"m"


def main() -> None:
    """Serve until nobody needs it any more."""
    forks.serve(handle)


def handle(data: bytearray, _: list[int]) -> Fork:
    """A child for each request, whose id maps are written here."""
    request = messages.decode_request(data)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def started(server: Server, pid: int) -> None:
        theirs.close()
        server.watch(ours.fileno(), lambda: _map(server, ours, pid, request))

    def undo() -> None:
        ours.close()
        theirs.close()

    return Fork(
        child=lambda connection: _answer(connection, theirs, request),
        failed=lambda error: messages.encode(Failed(step="fork", errno=error.errno or 0)),
        # The end of the parent must be seen by the child.
        keep=(theirs.fileno(),),
        started=started,
        undo=undo,
    )


def _map(server: Server, sync: socket.socket, pid: int, request: MakeNamespaces) -> None:
    server.leave(sync.fileno())
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


def _lines(extents: tuple[Extent, ...]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.length}\n" for one in extents)


class _StepFailed(Exception):
    def __init__(self, step: str, errno: int) -> None:
        super().__init__(step, errno)
        self.step, self.errno = step, errno


def _answer(connection: socket.socket, sync: socket.socket, request: MakeNamespaces) -> None:
    """In the child."""
    signal.alarm(_CHILD_SECONDS)
    try:
        kinds, descriptors = _make(sync, request)
    except _StepFailed as error:
        wire.send(connection, messages.encode(Failed(step=error.step, errno=error.errno)))
    else:
        wire.send(connection, messages.encode(Made(kinds=kinds)), descriptors)


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
