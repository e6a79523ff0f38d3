"""A connection: a socket, with TLS or without, that never blocks."""

from __future__ import annotations

import select
import socket
import ssl
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 256 * 1024
HIGH_WATER: Final = 1024 * 1024
"""Bytes waiting for the client from which nothing more is produced for it."""


class Wire:
    """Bytes to and from one peer. ConnectionError (or any OSError) says that it has gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out = bytearray()
        self._wants_write = False

    def fileno(self) -> int:
        """For poll(2)."""
        return self._sock.fileno()

    @property
    def waiting(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._out)

    @property
    def full(self) -> bool:
        """Whether the client should be left to read first."""
        return len(self._out) >= HIGH_WATER

    def interest(self, *, reading: bool) -> int:
        """What to poll for. POLLRDHUP tells of a client that went while it is not read from."""
        wanted = select.POLLRDHUP
        if reading:
            wanted |= select.POLLIN
        if self._out or self._wants_write:
            wanted |= select.POLLOUT
        return wanted

    def receive(self) -> bytes | None:
        """What has come in, ``None`` if nothing has; ConnectionError at its end.

        TLS may hold decrypted bytes that poll(2) knows nothing of, so all that is there is read.
        """
        found = bytearray()
        self._wants_write = False
        while True:
            try:
                data = self._sock.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except ssl.SSLWantWriteError:
                self._wants_write = True
                break
            if not data:
                if not found:
                    raise ConnectionResetError("the peer has gone")
                break
            found += data
            if not isinstance(self._sock, ssl.SSLSocket) or (len(found) >= _CHUNK and not self._sock.pending()):
                break
        return bytes(found) if found else None

    def send(self, data: bytes) -> None:
        """Send what can be sent, keep the rest for :meth:`flush`."""
        if data:
            self._out += data
            self.flush()

    def flush(self) -> None:
        """Send what can be sent of what is waiting."""
        while self._out:
            try:
                with memoryview(self._out)[:_CHUNK] as piece:
                    sent = self._sock.send(piece)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            del self._out[:sent]

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
