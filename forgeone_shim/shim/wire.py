"""How messages travel between a fork server and its clients: one packet each way, descriptors beside it.

Every connection is ``SOCK_SEQPACKET``, so a message is whole or not there. The first byte says how the rest is meant;
what is too long for a packet is in a memory file of its own, passed before the other descriptors.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import Final

_INLINE, _FILE, _FINISH, _FINISHING = b"i", b"f", b"q", b"e"
_PACKET_MAX: Final = 65536
DATA_MAX: Final = 8 << 20
# The kernel takes 253 (SCM_MAX_FD); one is for the memory file.
DESCRIPTORS_MAX: Final = 32
# What tells a packet's size and leaves it where it is.
_SIZE: Final = int(socket.MSG_PEEK | socket.MSG_TRUNC)
_INT: Final = array.array("i").itemsize
_ROOM: Final = socket.CMSG_SPACE((DESCRIPTORS_MAX + 1) * _INT)


class ProtocolError(ValueError):
    """A message is not one of those that may come."""


class Ended(Exception):
    """The connection has ended. ``heard`` says that the other side may have read what was sent last."""

    def __init__(self, *, heard: bool) -> None:
        super().__init__("the connection ended")
        self.heard = heard


class Message:
    """Bytes, and descriptors that whoever holds the message owns: take them out of it, or close it."""

    __slots__ = ("data", "fds", "finish")

    def __init__(self, data: bytearray, fds: Iterable[int] = (), *, finish: bool = False) -> None:
        self.data, self.fds, self.finish = data, list(fds), finish

    def take(self) -> list[int]:
        """The descriptors, now the caller's."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close what has not been taken."""
        close_all(self.take())

    def wipe(self) -> None:
        """Leave nothing of it in memory that others may come to have."""
        _wipe(self.data)


def check(data: bytes, fds: Sequence[int]) -> None:
    """:raises ProtocolError: there is more than can be sent."""
    if len(data) > DATA_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is longer than {DATA_MAX}")
    if len(fds) > DESCRIPTORS_MAX:
        raise ProtocolError(f"{len(fds)} descriptors are more than {DESCRIPTORS_MAX}")


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send a message; the descriptors stay the caller's.

    :raises ProtocolError: it is too long.
    :raises OSError: as sendmsg(2).
    """
    check(data, fds)
    if len(data) < _PACKET_MAX:
        _send(connection, _INLINE + data, fds)
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(memory, view) :]
        _send(connection, _FILE, (memory, *fds))
    finally:
        os.close(memory)


def send_finish(connection: socket.socket) -> None:
    """Tell the server to take no more requests, and to end when nothing is under way."""
    _send(connection, _FINISH, ())


def send_finishing(connection: socket.socket) -> None:
    """The answer to it."""
    _send(connection, _FINISHING, ())


def _send(connection: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([packet], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> Message:
    """The next message.

    :raises Ended: there is none any more.
    :raises ProtocolError: it is not as it should be; what came with it is closed.
    :raises OSError: as recvmsg(2); BlockingIOError or TimeoutError where none is there (yet).
    """
    try:
        # Its size first: room for the longest packet would be thirty pages that a child no longer shares.
        packet = bytearray(max(1, min(_PACKET_MAX, connection.recv_into(bytearray(1), 1, _SIZE))))
        size, ancillary, flags, _ = connection.recvmsg_into([packet], _ROOM, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        # Of a peer that goes while it has not read what came for it (unix(7)).
        raise Ended(heard=False) from error
    kind = bytes(packet[: min(1, size)])
    message = Message(packet[1:size], _descriptors(ancillary), finish=kind in (_FINISH, _FINISHING))
    _wipe(packet)
    try:
        if not size:
            raise Ended(heard=True)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a message was cut")
        if kind == _FILE:
            message.data = _read_file(message)
        elif kind not in (_INLINE, _FINISH, _FINISHING):
            raise ProtocolError("a message of an unknown kind")
    except BaseException:
        message.close()
        raise
    return message


def _wipe(data: bytearray) -> None:
    data[:] = bytes(len(data))


def _read_file(message: Message) -> bytearray:
    if not message.fds:
        raise ProtocolError("a message lacks its file")
    memory = message.fds.pop(0)
    try:
        seen = os.fstat(memory)
        size = seen.st_size
        if not stat.S_ISREG(seen.st_mode) or size > DATA_MAX:
            raise ProtocolError(f"a message's file is none, or its {size} bytes are more than {DATA_MAX}")
        data = bytearray(size)
        came = os.preadv(memory, [data], 0)
    except OSError as error:
        raise ProtocolError(f"a message's file cannot be read: {error.strerror}") from error
    finally:
        os.close(memory)
    if came != size:
        raise ProtocolError("a message's file was cut")
    return data


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % _INT])
    return list(found)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; fails on none."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
