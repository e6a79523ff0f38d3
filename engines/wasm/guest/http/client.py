"""``wasi:http/outgoing-handler`` (WASI 0.2): requests that a guest makes, each on a connection of its own."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from engines.wasm.guest.http import names, wire
from engines.wasm.guest.http.bodies import Intake, Sink
from engines.wasm.guest.http.session import Err, Session, Waits
from engines.wasm.guest.http.transport import Broken, Plain, Tls, Transport
from engines.wasm.guest.http.wasi_http import (
    FutureIncomingResponse,
    IncomingResponse,
    OutgoingRequest,
    RequestOptions,
    method_in,
)

# What wasmtime has, but for the first: nobody should wait for ten minutes to learn that nothing is there.
_CONNECT_MAX: Final = 60.0
_FIRST_BYTE_MAX: Final = 600.0
_BETWEEN_BYTES_MAX: Final = 600.0
_AT_ONCE_MAX: Final = 128
# Responses before the response: whoever sends more never means to answer.
_INTERIM_MAX: Final = 100
_RECEIVE: Final = 64 * 1024
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_PENDING: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})
# Where images keep the authorities that they trust.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def _tls(session: Session) -> ssl.SSLContext:
    """With the authorities of the guest's own image or environment, where it has some."""
    surroundings = session.surroundings
    told = dict(surroundings.env).get("SSL_CERT_FILE")
    for path in (told,) if told else _BUNDLES:
        if os.path.isfile(path):  # noqa: PTH113
            return ssl.create_default_context(cafile=path)
    return surroundings.trust or ssl.create_default_context()


class Request:
    """One request. A source (ready with the response or an error), and a mover."""

    __slots__ = (
        "_addresses",
        "_buffer",
        "_closed",
        "_deadline",
        "_handshake",
        "_head",
        "_host",
        "_interim",
        "_make_tls",
        "_method",
        "_options",
        "_outcome",
        "_sink",
        "_socket",
        "_stage",
        "_transport",
    )

    def __init__(
        self,
        request: OutgoingRequest,
        options: RequestOptions | None,
        host: str,
        make_tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self._method = method_in(request.method)
        self._options = options or RequestOptions()
        self._host = host
        self._addresses: list[tuple[str, int]] = []
        self._make_tls = make_tls
        self._outcome: tuple[str, Any] | None = None
        self._socket: socket.socket | None = None
        self._transport: Transport | None = None
        self._handshake: Tls | None = None
        self._stage = self._connect
        self._buffer = b""
        self._interim = 0
        self._closed = False
        self._deadline = time.monotonic() + _seconds(self._options.connect, _CONNECT_MAX)
        self._sink = Sink() if request.body is None else request.body.sink
        self._head = _head(request, self._method)
        if request.body is None:
            self._sink.finish()

    def go(self, addresses: list[tuple[str, int]]) -> None:
        """Begin, with these to be tried in turn."""
        self._addresses = addresses
        self.ready()

    def refuse(self, code: Any) -> None:
        """End it before it began."""
        self._fail(code)

    def ready(self) -> bool:
        while self._outcome is None and self._stage():
            pass
        return self._outcome is not None

    def await_in(self, waits: Waits) -> None:
        if self._outcome is None:
            waits.at(self._deadline)
            if self._stage == self._connect and self._socket is not None:
                waits.on(self._socket.fileno(), select.POLLOUT)
            elif self._transport is not None:
                self._transport.await_receive(waits)
        if self._transport is not None and self._handshake is None:
            self._sink.await_in(waits)

    def move(self) -> bool:
        """Go on, with the response and with the body."""
        waiting = not self.ready()
        return (self._transport is not None and self._handshake is None and self._sink.move()) or waiting

    def outcome(self) -> tuple[str, Any]:
        return self._outcome or ("err", ("internal-error", None))

    def cancel(self) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Again is no error."""
        self._sink.fail("the request is over")
        self._fail("connection-terminated")
        self._end()

    @property
    def open(self) -> bool:
        """Whether it may still have a connection."""
        return not self._closed

    # Stages: each goes on without waiting, and says whether there is more to do at once.

    def _connect(self) -> bool:
        if self._socket is None:
            if not self._addresses:
                return self._fail("destination-unavailable")
            family = socket.AF_INET6 if ":" in self._addresses[0][0] else socket.AF_INET
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError:
                return self._fail("connection-limit-reached")
        code = self._socket.connect_ex(self._addresses[0])
        if code in _PENDING:
            return self._in_time("connection-timeout")
        if code not in (0, errno.EISCONN):
            self._socket.close()
            self._socket = None
            del self._addresses[0]
            return True if self._addresses else self._fail(_REFUSALS.get(code, "destination-unavailable"))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._make_tls is None:
            self._transport = Plain(self._socket)
            return self._begin()
        try:
            self._transport = self._handshake = Tls(self._socket, self._make_tls(), self._host)
        except (OSError, ValueError):
            return self._fail("TLS-protocol-error")
        self._stage = self._greet
        return True

    def _greet(self) -> bool:
        greeting = self._handshake
        if greeting is None:
            return self._begin()
        try:
            if not greeting.handshake():
                return self._in_time("connection-timeout")
        except ssl.SSLCertVerificationError:
            return self._fail("TLS-certificate-error")
        except ssl.SSLError:
            return self._fail("TLS-protocol-error")
        except Broken:
            return self._fail("connection-terminated")
        self._handshake = None
        return self._begin()

    def _begin(self) -> bool:
        """The connection is there: the message may go."""
        sink, transport = self._sink, self._transport
        if transport is None:
            return self._fail("connection-terminated")
        framing, length, make = self._head
        done = sink.finished
        sink.attach(transport, make, _seconds(self._options.between_bytes, _BETWEEN_BYTES_MAX), framing, length)
        if sink.too_much or (done and not sink.end(sink.trailers)):
            return self._fail(("HTTP-request-body-size", None))
        self._deadline = time.monotonic() + _seconds(self._options.first_byte, _FIRST_BYTE_MAX)
        self._stage = self._answer
        return True

    def _answer(self) -> bool:
        transport = self._transport
        if transport is None:
            return self._fail("connection-terminated")
        self._sink.move()
        if self._sink.abandoned:
            return self._fail("HTTP-protocol-error")
        if self._sink.finished and not self._sink.whole:
            return self._fail(("HTTP-request-body-size", None))
        try:
            came = transport.receive(_RECEIVE)
            if came is None:
                return self._in_time("HTTP-response-timeout")
            if not came:
                return self._fail("HTTP-response-incomplete" if self._buffer else "connection-terminated")
            self._buffer += came
            return self._parse(transport)
        except Broken:
            return self._fail("connection-terminated")
        except wire.Malformed as error:
            return self._fail(
                ("HTTP-response-header-section-size", None) if error.status == 431 else "HTTP-protocol-error"
            )

    def _parse(self, transport: Transport) -> bool:
        while end := wire.head_end(self._buffer):
            response = wire.parse_response(self._buffer[:end], self._method)
            self._buffer = self._buffer[end:]
            if response.status == 101:
                return self._fail("HTTP-upgrade-failed")
            if response.status >= 200:
                return self._respond(transport, response)
            self._interim += 1
            if self._interim > _INTERIM_MAX:
                return self._fail("HTTP-protocol-error")
        return True

    def _respond(self, transport: Transport, response: wire.Response) -> bool:
        body = wire.Body(response.framing, response.length)
        body.feed(self._buffer)
        self._buffer = b""
        intake = Intake(transport, body, _seconds(self._options.between_bytes, _BETWEEN_BYTES_MAX), over=self.close)
        visible = [entry for entry in response.headers if entry[0] not in wire.CONNECTION_HEADERS]
        self._outcome = ("ok", IncomingResponse(response.status, visible, intake))
        return False

    def _in_time(self, code: str) -> bool:
        if time.monotonic() > self._deadline:
            self._fail(code)
        return False

    def _fail(self, code: Any) -> bool:
        if self._outcome is None:
            self._outcome = ("err", code)
            self._sink.fail("the request failed")
            self._end()
        return False

    def _end(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.close()
        if self._socket is not None:
            self._socket.close()


_REFUSALS: Final = {
    errno.ECONNREFUSED: "connection-refused",
    errno.ETIMEDOUT: "connection-timeout",
    errno.ENETUNREACH: "destination-IP-unroutable",
    errno.EHOSTUNREACH: "destination-IP-unroutable",
    errno.EACCES: "destination-IP-prohibited",
    errno.EPERM: "destination-IP-prohibited",
}


def _seconds(nanoseconds: int | None, most: float) -> float:
    return most if nanoseconds is None else nanoseconds / 1e9


def _head(request: OutgoingRequest, method: str) -> tuple[wire.Framing, int, Callable[[wire.Framing, int], bytes]]:
    """How the request's body ends, and what makes its head.

    :raises Err: a Content-Length that is none.
    """
    lengths = [value for name, value in request.fields.entries if name == "content-length"]
    if len(lengths) > 1 or (lengths and not (lengths[0].isdigit() and len(lengths[0]) <= 18)):
        raise Err("HTTP-request-length-required")
    framing, length = (wire.Framing.LENGTH, int(lengths[0])) if lengths else (wire.Framing.CHUNKED, 0)

    def make(framing: wire.Framing, length: int) -> bytes:
        lines = [
            f"{method} {_target(request.path)} HTTP/1.1\r\nhost: {request.authority}\r\n".encode(),
            wire.encode_headers(request.fields.entries),
            b"connection: close\r\n",
        ]
        if framing is wire.Framing.CHUNKED:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif not lengths and (length or method not in _WITHOUT_BODY):
            lines.append(b"content-length: %d\r\n" % length)
        return b"".join([*lines, b"\r\n"])

    return framing, length, make


def _target(path: str | None) -> str:
    """A query alone is one of the root."""
    return path if path and not path.startswith("?") else f"/{path or ''}"


def _handle(session: Session, request: OutgoingRequest, options: RequestOptions | None) -> FutureIncomingResponse:
    if not session.surroundings.network:
        raise Err("HTTP-request-denied")
    scheme = request.scheme or "HTTPS"
    if scheme not in ("HTTP", "HTTPS"):
        raise Err("HTTP-protocol-error")
    found = _HOST_PORT.fullmatch(request.authority or "")
    if found is None:
        raise Err("HTTP-request-URI-invalid")
    requests = [each for each in session.closing if isinstance(each, Request)]
    gone = [each for each in requests if not each.open]
    if len(requests) - len(gone) >= _AT_ONCE_MAX:
        raise Err("connection-limit-reached")
    session.closing = [each for each in session.closing if each not in gone]
    session.movers = [each for each in session.movers if each not in gone]
    host = found[1].strip("[]")
    port = int(found[2]) if found[2] else (443 if scheme == "HTTPS" else 80)
    made = Request(request, options, host, (lambda: _tls(session)) if scheme == "HTTPS" else None)
    try:
        made.go([(address, port) for address in _addresses(session, host, options)])
    except names.NotResolved as error:
        made.refuse(("DNS-error", (error.rcode, None)) if error.rcode else "DNS-timeout")
    session.movers.append(made)
    session.closing.append(made)
    return FutureIncomingResponse(made)


def _addresses(session: Session, host: str, options: RequestOptions | None) -> list[str]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [host]
    deadline = time.monotonic() + _seconds(options.connect if options else None, _CONNECT_MAX)
    if session.expires is not None:
        deadline = min(deadline, session.expires)
    return names.resolve(host, deadline)


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {"wasi:http/outgoing-handler#handle": _handle}
