"""HTTPS for the API server: a thread for each connection, kept alive, and nothing without a limit.

http.server reads requests, ssl does TLS. A connection that is idle gives way to a new one where there are too many, so
that nobody can keep the API server out by connecting and saying nothing.
"""

from __future__ import annotations

import errno
import io
import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

import structlog

from cri.admission.service import Caller, Response, Service
from forgeone_shim.errors import syscall_error

IDLE: Final = 120.0
"""Seconds that a connection may wait for its next request: longer than the 90 after which an API server closes it."""
BACKLOG: Final = 128
_BODIES: Final = 2
"""Of the largest size, at a time."""
_SMALL: Final = 64 << 10
"""Bytes of a body that waits for none of these: what most questions have, whoever holds the rest."""
_HEAD: Final = 32 << 10
"""Bytes of a request before its body."""
_VALUES: Final = 12
"""Times the largest body, that what is read from bodies may take, of all requests together."""
_LEAST: Final = 96 << 20
"""Bytes of that at the least."""
_VALUE, _CHARACTER = 160, 4
"""Bytes of a value of JSON with what holds it, and of a character of a text, where they take the most."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


@dataclass(frozen=True, slots=True)
class Limits:
    """``seconds`` are those of a handshake, and of a request from its first byte to the last of its answer."""

    connections: int = 128
    body: int = 8 << 20
    seconds: float = 5.0


class Budget:
    """Bytes of bodies that are held at a time. Many that are large wait for each other."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()

    def take(self, size: int, until: float) -> bool:
        """Whether there was room before ``until`` (time.monotonic)."""
        if size > self._most:
            return False
        with self._changed:
            left = max(0.0, until - time.monotonic())
            if not self._changed.wait_for(lambda: self._held + size <= self._most, left):
                return False
            self._held += size
            return True

    def give(self, size: int) -> None:
        """They are held no more."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()


class Server:
    """Serves from :meth:`start` until :meth:`stop`."""

    def __init__(self, address: tuple[str, int], service: Service, limits: Limits) -> None:
        """:raises ForgeError: the address cannot be had."""
        self.service, self.limits = service, limits
        self.bodies, self.values = Budget(_BODIES * limits.body), Budget(max(_VALUES * limits.body, _LEAST))
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Condition()
        self._open: dict[_Connection, None] = {}
        self._stopping = False
        try:
            self._listener = _listen(address)
        except OSError as error:
            raise syscall_error("listen", f"{address[0]}:{address[1]}", error) from None
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def stopping(self) -> bool:
        """Whether connections are to be closed after the request that they are at."""
        return self._stopping

    def start(self) -> None:
        """Take connections."""
        self._thread.start()

    def secure(self, context: ssl.SSLContext) -> None:
        """The certificate of connections to come. Those that are open go on under theirs."""
        self._context = context

    def stop(self, grace: float) -> None:
        """Take no more connections; requests under way have ``grace`` seconds."""
        self._stopping = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for one in self._open:
                if not one.busy:
                    one.abort()
            self._lock.wait_for(lambda: not self._open, grace)
            for one in self._open:
                one.abort()
            self._lock.wait_for(lambda: not self._open, 1.0)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:
                if self._stopping:
                    return
                if error.errno in _EXHAUSTED:
                    with self._lock:
                        self._lock.wait(self.limits.seconds)
                continue
            if self._stopping:
                accepted.close()
                return
            self._begin(accepted)

    def _begin(self, accepted: socket.socket) -> None:
        context = self._context
        with self._lock:
            if len(self._open) >= self.limits.connections:
                idle = min((one for one in self._open if not one.busy), key=lambda one: one.since, default=None)
                if idle is not None:
                    idle.abort()
            room = len(self._open) < self.limits.connections or self._lock.wait_for(
                lambda: len(self._open) < self.limits.connections, self.limits.seconds
            )
            if context is None or not room:
                accepted.close()
                return
            connection = _Connection(accepted, context, self)
            self._open[connection] = None
        threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.run()
        except (OSError, ValueError):
            # Whoever connected did not speak TLS, or went, or was too slow; no object has been looked at.
            _log.debug("connection ended early")
        finally:
            connection.close()
            with self._lock:
                self._open.pop(connection, None)
                self._lock.notify_all()


class _Connection:
    """One client. ``busy``: from the first byte of a request to the last of its answer, and until its first one begins.

    ``room``: bytes that it may still send.
    """

    def __init__(self, accepted: socket.socket, context: ssl.SSLContext, server: Server) -> None:
        self._accepted, self._context, self._server = accepted, context, server
        self._stream: socket.socket = accepted
        self.busy, self.since = True, time.monotonic()
        self.until = self.since + server.limits.seconds
        self.room = _HEAD

    def run(self) -> None:
        """Until the client goes, or has been idle for too long."""
        self._accepted.settimeout(self._server.limits.seconds)
        self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = self._context.wrap_socket(self._accepted, server_side=True, do_handshake_on_connect=False)
        self._stream = secure
        secure.do_handshake()
        _Requests(_Timed(secure, self), self, self._server, _caller(secure)).serve()

    def rest(self) -> None:
        """It waits for its next request."""
        self.busy, self.since = False, time.monotonic()
        self.until = self.since + IDLE
        self.room = _HEAD

    def work(self) -> None:
        """A request has begun."""
        self.busy, self.until = True, time.monotonic() + self._server.limits.seconds

    def abort(self) -> None:
        """Wake whoever waits for it; from any thread."""
        with suppress(OSError):
            # Not the method of ssl.SSLSocket, which takes TLS down under a thread that uses it.
            socket.socket.shutdown(self._stream, socket.SHUT_RDWR)

    def close(self) -> None:
        """Its descriptor."""
        with suppress(OSError):
            self._stream.close()


class _Timed(io.RawIOBase):
    """A connection's bytes, all of them before its deadline, however slowly they trickle."""

    def __init__(self, stream: socket.socket, connection: _Connection) -> None:
        self._stream, self._connection = stream, connection

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._stream.settimeout(self._left())
        room = self._connection.room
        if room <= 0:
            raise ConnectionError("more than a request may have")
        got = self._stream.recv_into(memoryview(buffer)[:room])
        self._connection.room -= got
        return got

    def write(self, data: Any) -> int:
        self._stream.settimeout(self._left())
        self._stream.sendall(data)
        return len(data)

    def _left(self) -> float:
        left = self._connection.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of a request passed")
        return left


class _Requests(BaseHTTPRequestHandler):
    """The requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"

    def __init__(self, stream: _Timed, connection: _Connection, server: Server, caller: Caller) -> None:
        # The base class would serve at once, and read from the socket without a deadline.
        self.rfile: io.BufferedReader = io.BufferedReader(stream)
        self.wfile = stream  # type: ignore[assignment]
        self._headers_buffer: list[bytes] = []
        self._connection, self._server, self._caller = connection, server, caller
        self.client_address = ("", 0)
        self.close_connection = False

    def serve(self) -> None:
        """Until one of both sides closes."""
        while not self.close_connection and not self._server.stopping:
            if not self.rfile.peek(1):
                return
            self._connection.work()
            self.path = ""
            self.handle_one_request()
            self._connection.rest()

    def do_GET(self) -> None:
        self._respond(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit() and len(length) < 12):
            self._refuse(411, b"a length is needed\n")
        elif int(length) > self._server.limits.body:
            self._refuse(413, b"too large\n")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(415, b"application/json only\n")
        else:
            self._read(int(length))

    def _read(self, length: int) -> None:
        with ExitStack() as held:
            if length > _SMALL and not self._taken(held, self._server.bodies, length):
                return
            self._connection.room += length
            body = self.rfile.read(length)
            if len(body) < length:
                self.close_connection = True
            elif self._taken(held, self._server.values, _weight(body)):
                self._respond(body)

    def _taken(self, held: ExitStack, budget: Budget, size: int) -> bool:
        if not budget.take(size, self._connection.until):
            self._refuse(503, b"too much at a time\n")
            return False
        held.callback(budget.give, size)
        return True

    def _refuse(self, code: int, why: bytes) -> None:
        self._server.service.refused(self.path, code)
        # The body is still on its way, and nobody reads it.
        self.close_connection = True
        self._write(Response(code, why))

    def _respond(self, body: bytes) -> None:
        self._write(self._server.service.respond(self.command, self.path, body, self._caller))

    def _write(self, response: Response) -> None:
        if self._server.stopping:
            self.close_connection = True
        self.send_response_only(response.code)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self._headers_buffer.append(b"\r\n")
        head = b"".join(self._headers_buffer)
        self._headers_buffer = []
        # In one piece: a head alone would be a TLS record, and a packet, of its own.
        self.wfile.write(head + response.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: a request that is none."""
        del message, explain
        # It may not have come to know these.
        self.request_version = "HTTP/1.1"
        self._headers_buffer = []
        self._refuse(code, b"not a request\n")

    def log_message(self, format: str, *args: object) -> None:
        """Paths and methods are the client's words: they are not logged."""


def _listen(address: tuple[str, int]) -> socket.socket:
    host, port = address
    # Without an address: both families, where there are two.
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def _weight(body: bytes) -> int:
    """Bytes that what JSON says may take at most: each value but the first has a comma or a bracket before it."""
    return len(body) * _CHARACTER + sum(map(body.count, (b",", b"[", b"{"))) * _VALUE


def _caller(secure: ssl.SSLSocket) -> Caller:
    shown: Any = secure.getpeercert()
    if not shown:
        return Caller()
    names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
    return Caller(names[-1] if names else "", verified=True)
