"""A connection's bytes, plain or by TLS, without waiting."""

from __future__ import annotations

# ssl encodes a host's name by it, and would look for it in the guest's own root directory.
import encodings.idna  # noqa: F401
import select
import socket
import ssl
from typing import Protocol

from engines.wasm.guest.http.session import Waits


class Broken(Exception):
    """The connection is no more; the text says how it ended."""


class Transport(Protocol):
    """Both directions of a connection. Neither blocks."""

    def receive(self, limit: int) -> bytes | None:
        """What has come; ``None`` when nothing has, no bytes at the end; Broken."""

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        """How much was taken; 0 when nothing is taken now; Broken.

        ``more`` will follow at once: the kernel may wait for it, but 200 ms at most, and not past :meth:`push`.
        """

    def push(self) -> None:
        """Nothing follows at once after all."""

    def await_receive(self, waits: Waits) -> None:
        """Wait until :meth:`receive` may have something."""

    def await_send(self, waits: Waits) -> None:
        """Wait until :meth:`send` may take something."""

    def close(self) -> None:
        """Again is no error."""


class Plain:
    """TCP. The socket does not block, and is this object's from now on."""

    __slots__ = ("_socket", "fd")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.fd = connected.fileno()

    def receive(self, limit: int) -> bytes | None:
        try:
            return self._socket.recv(limit)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Broken(error.strerror or str(error)) from error

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        try:
            return self._socket.send(data, socket.MSG_MORE if more else 0)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Broken(error.strerror or str(error)) from error

    def push(self) -> None:
        try:
            # Setting it again sends what is held back (tcp(7)).
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Broken(error.strerror or str(error)) from error

    def await_receive(self, waits: Waits) -> None:
        waits.on(self.fd, select.POLLIN)

    def await_send(self, waits: Waits) -> None:
        waits.on(self.fd, select.POLLOUT)

    def finish_sending(self) -> None:
        """Say that nothing more will come from here."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()


class Tls:
    """TLS over TCP. Either direction may wait for either: ``_read_on`` and ``_write_on`` say for which."""

    __slots__ = ("_read_on", "_socket", "_write_on", "fd")

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._socket = context.wrap_socket(connected, server_hostname=name, do_handshake_on_connect=False)
        self.fd = self._socket.fileno()
        self._read_on = select.POLLIN
        self._write_on = select.POLLOUT

    def handshake(self) -> bool:
        """Go on with it; whether it is over.

        :raises ssl.SSLError: it failed.
        :raises Broken: the connection ended.
        """
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._read_on = self._write_on = select.POLLIN
            return False
        except ssl.SSLWantWriteError:
            self._read_on = self._write_on = select.POLLOUT
            return False
        except ssl.SSLError:
            raise
        except OSError as error:
            raise Broken(error.strerror or str(error)) from error
        self._read_on, self._write_on = select.POLLIN, select.POLLOUT
        return True

    def receive(self, limit: int) -> bytes | None:
        try:
            data = self._socket.recv(limit)
        except ssl.SSLWantReadError:
            self._read_on = select.POLLIN
            return None
        except ssl.SSLWantWriteError:
            self._read_on = select.POLLOUT
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except OSError as error:
            # An end without close_notify is a broken connection: what came may have been cut.
            raise Broken(getattr(error, "reason", None) or error.strerror or str(error)) from error
        self._read_on = select.POLLIN
        return data

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:  # noqa: ARG002
        try:
            taken = self._socket.send(data)
        except ssl.SSLWantWriteError:
            self._write_on = select.POLLOUT
            return 0
        except ssl.SSLWantReadError:
            self._write_on = select.POLLIN
            return 0
        except OSError as error:
            raise Broken(getattr(error, "reason", None) or error.strerror or str(error)) from error
        self._write_on = select.POLLOUT
        return taken

    def push(self) -> None:
        """Nothing is held back."""

    def await_receive(self, waits: Waits) -> None:
        waits.on(self.fd, self._read_on)

    def await_send(self, waits: Waits) -> None:
        waits.on(self.fd, self._write_on)

    def close(self) -> None:
        self._socket.close()
