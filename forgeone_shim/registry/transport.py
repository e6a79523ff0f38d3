"""HTTP for one pull: connections, TLS, time limits, cancellation. It knows nothing of registries.

Bodies are read from the socket straight into the caller's buffer. A :class:`Session` lives as long as a pull, so
neither connections nor secrets outlive it.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ResourceExhausted
from forgeone_shim.registry.auth import basic
from forgeone_shim.registry.hosts import TlsSettings

USER_AGENT: Final = "forgeone"
# Below this a read goes back to the socket, so that the work done for each piece stays small beside the piece.
_FILL: Final = 64 * 1024


class TransportError(Exception):
    """The network, TLS or the peer's HTTP failed; the text names the host and holds no secret.

    ``connecting`` tells a host that cannot be reached from a transfer that broke.
    """

    def __init__(self, origin: str, why: str, *, connecting: bool = False) -> None:
        super().__init__(f"{origin}: {why}")
        self.connecting = connecting


class Cancelled(Exception):
    """The session was cancelled: nobody wants the answer any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one URL; ``url`` was checked by :func:`hosts.split_url`.

    Without a ``method`` it is a GET, or a POST where there is a body. A body that comes in pieces needs a
    Content-Length in the headers; its pieces may be asked for again.
    """

    url: str
    headers: Mapping[str, str]
    tls: TlsSettings
    dial_timeout: float
    body: bytes | Callable[[], Iterable[bytes]] | None = None
    method: str = ""


class TlsContexts:
    """TLS contexts by settings, made again when a certificate file changes. Loading the system's CAs takes long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[TlsSettings, tuple[tuple[int, ...], ssl.SSLContext]] = {}

    def get(self, settings: TlsSettings) -> ssl.SSLContext:
        """The context for these settings.

        :raises FailedPrecondition: when a file cannot be read or is no certificate or key.
        """
        files = [*settings.ca, *(path for pair in settings.client for path in pair if path)]
        try:
            stamps = tuple(Path(path).stat().st_mtime_ns for path in files)
        except OSError as error:
            raise FailedPrecondition(f"{error.filename}: {error.strerror}", fix="correct hosts.toml") from error
        with self._lock:
            made = self._made.get(settings)
            if made is None or made[0] != stamps:
                made = self._made[settings] = (stamps, _make_context(settings))
        return made[1]


def _make_context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    at: Path | None = None
    try:
        for at in settings.ca:
            context.load_verify_locations(at)
        for at, key in settings.client:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(at, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{at}: cannot be used for TLS: {error}", fix="correct hosts.toml") from error
    return context


class Session:
    """The connections of one pull. Thread-safe; :meth:`cancel` wakes every thread that waits for a peer."""

    def __init__(self, contexts: TlsContexts, deadline: Deadline, patience: float) -> None:
        self._contexts = contexts
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, TlsSettings], list[_Connection]] = {}
        self._live: set[_Connection] = set()
        self._on_cancel: list[Callable[[], None]] = []
        self.deadline = deadline
        self.patience = patience
        self.cancelled = threading.Event()

    def check(self, stage: str) -> None:
        """Raise once nobody waits for this pull any more."""
        if self.cancelled.is_set():
            raise Cancelled
        self.deadline.check(stage)

    def open(self, request: Request) -> Response:
        """Send a request and read the head of the answer; the body is left to the caller.

        :raises TransportError: when the host cannot be reached or does not speak HTTP.
        """
        parts = urlsplit(request.url)
        key = (parts.scheme, parts.netloc, request.tls)
        while True:
            self.check(f"while asking {_origin(parts)}")
            with self._lock:
                idle = self._idle.get(key, [])
                connection = idle.pop() if idle else None
            if connection is not None:
                try:
                    return self._send(connection, request, parts, key)
                except TransportError:
                    continue  # a server may close an idle connection at any time: what counts is a fresh one
            return self._send(self._connect(parts, request), request, parts, key)

    def _connect(self, parts: SplitResult, request: Request) -> _Connection:
        proxy = _proxy_for(parts)
        context = self._contexts.get(request.tls) if parts.scheme == "https" else None
        connection: _Connection | None = None
        try:
            connection = _Connection(_dial(parts, proxy, self.wait(request.dial_timeout)))
            with self._lock:
                self._live.add(connection)
            self.check(f"while connecting to {_origin(parts)}")
            if context is not None:
                connection.secure(context, parts.hostname or "")
            elif proxy:
                connection.proxy_headers = _proxy_login(proxy)
            self.check(f"while connecting to {_origin(parts)}")
        except BaseException as error:
            if connection is not None:
                self._drop(connection)
            if not isinstance(error, (OSError, http.client.HTTPException, ValueError)):
                raise
            self.check(f"while connecting to {_origin(parts)}")
            raise TransportError(_origin(parts), _explain(error), connecting=True) from None
        return connection

    def _send(
        self, connection: _Connection, request: Request, parts: SplitResult, key: tuple[str, str, TlsSettings]
    ) -> Response:
        target = parts._replace(fragment="").geturl()
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        if connection.proxy_headers is None:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        else:
            headers |= connection.proxy_headers
        try:
            connection.patience(self.wait())
            body = request.body() if callable(request.body) else request.body
            method = request.method or ("GET" if body is None else "POST")
            connection.http.request(method, target, body, headers)
            answer = connection.http.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop(connection)
            self.check(f"while asking {_origin(parts)}")
            raise TransportError(_origin(parts), _explain(error)) from None
        return Response(self, connection, answer, request.url, lambda: self._keep(key, connection))

    def wait(self, at_most: float | None = None) -> float:
        """How long one wait for the peer may take. Never zero: a passed deadline is for :meth:`check` to notice."""
        wait = self.deadline.remaining(self.patience if at_most is None else min(at_most, self.patience))
        return max(0.001, wait if wait is not None else self.patience)

    def _keep(self, key: tuple[str, str, TlsSettings], connection: _Connection) -> None:
        with self._lock:
            if not self.cancelled.is_set():
                self._idle.setdefault(key, []).append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            self._live.discard(connection)
        connection.http.close()

    def cancel(self) -> None:
        """Make every wait of this session end now, and refuse new requests."""
        self.cancelled.set()
        with self._lock:
            for connection in self._live:
                connection.shutdown()
            callbacks = list(self._on_cancel)
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called by :meth:`cancel`, for waits that are not for a peer."""
        with self._lock:
            self._on_cancel.append(callback)

    def close(self) -> None:
        """Close what is idle; responses still open close with their readers."""
        with self._lock:
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            self._drop(connection)


class _Connection:
    """An established connection. It keeps the socket, which http.client forgets once a body ends the connection.

    ``proxy_headers`` are set where each request goes to a proxy in clear.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.http = connection
        self.proxy_headers: dict[str, str] | None = None
        self._socket: socket.socket = connection.sock

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Shake hands."""
        plain = self._socket
        # The plain socket gives its descriptor away at once; by another one the handshake can be cut short.
        with plain.dup() as handle:
            self._socket = handle
            try:
                self.http.sock = plain = context.wrap_socket(plain, server_hostname=host)
            finally:
                self._socket = plain

    def patience(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def shutdown(self) -> None:
        # Past ssl's own shutdown(): that one would let the reading thread see the raw, still encrypted, stream.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Response:
    """An answer whose head is read. Close it; a body read to its end gives the connection back for another request."""

    def __init__(
        self,
        session: Session,
        connection: _Connection,
        answer: http.client.HTTPResponse,
        url: str,
        keep: Callable[[], None],
    ) -> None:
        self._session = session
        self._connection = connection
        self._answer = answer
        self._keep = keep
        self._left = answer.length if not answer.chunked else None
        self._broken: Exception | None = None
        self._closed = False
        self.url = url
        self.status = answer.status

    @property
    def length(self) -> int | None:
        """Bytes of body still to come, where the server said."""
        return self._left

    def header(self, name: str) -> str:
        """A header's value; empty when absent."""
        return self._answer.getheader(name, "") or ""

    def headers(self, name: str) -> list[str]:
        """Every value of a header that may come several times."""
        return self._answer.headers.get_all(name, [])

    def readinto(self, buffer: memoryview, at_most: float | None = None) -> int:
        """Fill some of the buffer; 0 at the end of the body. Waits ``at_most`` seconds for each piece.

        :raises TransportError: when the connection broke, TimeoutError: when nothing came in time. What came before
            either is returned first.
        """
        if self._broken is not None:
            raise self._broken
        filled = 0
        try:
            self._connection.patience(self._session.wait(at_most))
            if self._left is None:
                return self._answer.readinto(buffer)
            while filled < min(len(buffer), self._left, _FILL):
                got = self._answer.fp.readinto1(buffer[filled : min(len(buffer), self._left)])
                if not got:
                    break
                filled += got
        except TimeoutError as error:
            self._broken = error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._broken = TransportError(_origin(urlsplit(self.url)), _explain(error))
        if self._left is not None:
            self._left -= filled
        if self._broken is not None and not filled:
            raise self._broken
        return filled

    def read(self, limit: int, what: str) -> bytes:
        """The whole body, which may have up to ``limit`` bytes and takes no longer than the session's patience.

        :raises ResourceExhausted: when it is larger.
        """
        whole = Deadline.after(self._session.patience)
        buffer = memoryview(bytearray(_FILL))
        pieces: list[bytes] = []
        size = 0
        try:
            while got := self.readinto(buffer, whole.remaining()):
                size += got
                if size > limit:
                    raise ResourceExhausted(f"{what} is larger than {limit} bytes")
                pieces.append(bytes(buffer[:got]))
                self._session.check(f"while reading {what}")
                if whole.passed:
                    raise TimeoutError
        except TimeoutError:
            self._session.check(f"while reading {what}")
            why = f"{what} did not arrive within {self._session.patience:g} s"
            raise TransportError(_origin(urlsplit(self.url)), why) from None
        if self._left:
            raise TransportError(_origin(urlsplit(self.url)), f"the connection was cut inside {what}")
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back when it can be used again, else close it."""
        if self._closed:
            return
        self._closed = True
        ended = self._left == 0 if self._left is not None else self._answer.isclosed()
        if ended and self._broken is None and not self._answer.will_close:
            self._answer.close()
            self._keep()
        else:
            self._answer.close()
            self._session._drop(self._connection)


def _dial(parts: SplitResult, proxy: SplitResult | None, timeout: float) -> http.client.HTTPConnection:
    """A connection to the host, or through the proxy to it; its TLS is still to come."""
    host, default = parts.hostname or "", 443 if parts.scheme == "https" else 80
    if proxy is None:
        connection = http.client.HTTPConnection(host, parts.port or default, timeout=timeout)
    else:
        connection = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout)
        if default == 443:
            connection.set_tunnel(host, parts.port or default, _proxy_login(proxy))
    # It is left out of the Host header.
    connection.default_port = default
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy the environment names for a URL (``https_proxy``, ``http_proxy``, ``no_proxy``); loopback has none."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc) or _is_loopback(parts.hostname or ""):
        return None
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme != "http" or not found.hostname:
        raise FailedPrecondition(f"the {parts.scheme} proxy of the environment is not an http:// URL")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    return {"Proxy-Authorization": basic(proxy.username, proxy.password or "")} if proxy.username else {}


def _origin(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}"


def _explain(error: Exception) -> str:
    """Why, in words, without what the peer sent and without any header of ours."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS: {error.reason or 'failed'}".replace("_", " ").lower()
        case TimeoutError():
            return "no answer in time"
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return "the connection was cut"
        case socket.gaierror():
            return f"its name does not resolve: {error.strerror}"
        case OSError():
            return error.strerror or (os.strerror(error.errno) if error.errno else "connection failed")
        case _:
            return f"it does not speak HTTP ({type(error).__name__})"
