"""Who gives a keeper orders: connections to its socket, one order under way on each."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from engines.microvm.keeper import orders
from engines.microvm.keeper.orders import Answer, Order, Resize
from forgeone_shim.errors import Kind
from forgeone_shim.shim import wire
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.supervision import Failed, shortened
from forgeone_shim.shim.wire import Ended, ProtocolError

_CLIENTS_MAX: Final = 512
_BACKLOG: Final = 128
_UCRED: Final = struct.Struct("3i")


class Client:
    """One connection. ``when_gone(heard)`` is called once, if anybody has set it: whether the last answer was read."""

    def __init__(self, loop: Loop, connection: socket.socket, handle: Handle) -> None:
        self._loop, self._connection, self._handle = loop, connection, handle
        self.when_gone: Callable[[bool], None] | None = None
        self.when_resized: Callable[[Resize], None] | None = None
        self._busy = False
        self.gone = False
        connection.setblocking(False)
        loop.watch(connection.fileno(), lambda _: self._ready())

    def answer(self, answer: Answer, fds: Sequence[int] = ()) -> None:
        """To the order that is under way; the descriptors stay the caller's. One who has gone hears nothing."""
        self._busy = False
        self.say(answer, fds)

    def say(self, answer: Answer, fds: Sequence[int] = ()) -> None:
        """As :meth:`answer`, with the order still under way."""
        if self.gone:
            return
        try:
            wire.send(self._connection, orders.encode(answer), fds)
        except (OSError, ProtocolError):
            self.hang_up(heard=False)

    def fail(self, step: str, kind: Kind, message: str) -> None:
        """Answer that it was not done."""
        self.answer(Failed(step=step, error=kind, message=shortened(message)))

    def hang_up(self, *, heard: bool = True) -> None:
        """End the connection; again is no error."""
        if self.gone:
            return
        self.gone = True
        self._loop.leave(self._connection.fileno())
        self._connection.close()
        if self.when_gone is not None:
            self.when_gone(heard)

    def _ready(self) -> None:
        try:
            message = wire.receive(self._connection)
        except BlockingIOError:
            return
        except Ended as end:
            self.hang_up(heard=end.heard)
            return
        except (ProtocolError, OSError):
            self.hang_up(heard=False)
            return
        try:
            order = orders.decode_order(message.data)
            if isinstance(order, Resize) and self.when_resized is not None:
                self.when_resized(order)
            elif self._busy:
                self.hang_up(heard=False)
            else:
                self._busy = True
                self._handle(self, order, message.fds)
        except ProtocolError:
            self.hang_up(heard=False)
        finally:
            message.close()


Handle = Callable[[Client, Order, list[int]], None]


class Clients:
    """All connections to a listening socket of packets. Descriptors that ``handle`` keeps it takes out of its list."""

    def __init__(self, loop: Loop, listener: socket.socket, handle: Handle) -> None:
        self._loop, self._listener, self._handle = loop, listener, handle
        self._clients: list[Client] = []
        listener.setblocking(False)
        loop.watch(listener.fileno(), lambda _: self._accept())

    def take(self, connection: socket.socket) -> Client:
        """One more, that came another way."""
        client = Client(self._loop, connection, self._handle)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Nobody gives orders any more."""
        self._loop.leave(self._listener.fileno())
        self._listener.close()
        for client in self._clients:
            client.when_gone = None
            client.hang_up()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._clients = [one for one in self._clients if not one.gone]
                if len(self._clients) < _CLIENTS_MAX and _peer(connection) == os.geteuid():
                    self.take(connection)
                else:
                    connection.close()


def listen(directory: int, name: str) -> socket.socket:
    """A new socket in the directory, for packets, whole from its first moment. Raises OSError."""
    draft = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=directory)
    with contextlib.ExitStack() as undo:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(listener.close)
        # An address takes 107 bytes.
        listener.bind(f"/proc/self/fd/{directory}/{draft}")
        os.chmod(draft, 0o600, dir_fd=directory)
        listener.listen(_BACKLOG)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        undo.pop_all()
    return listener


def _peer(connection: socket.socket) -> int:
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
