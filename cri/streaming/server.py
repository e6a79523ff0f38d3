"""The port that clients stream through, and the tokens that let them in.

A verb of CRI gives out a URL with a token that is good once and for a minute; what the token stands for was checked by
the verb. A connection has a thread of its own from the accept to its end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from cri.streaming import command, forward, handshake, http
from cri.streaming.sessions import Loop, Stopped, command_session, forward_session
from cri.streaming.tokens import Tokens
from cri.streaming.wire import Wire
from engines.base import Console, Stdio
from forgeone_shim.config.model import StreamingConfig
from forgeone_shim.errors import ForgeError, InternalError, InvalidInput
from forgeone_shim.metrics.figures import Figure, gauge

REQUEST_SECONDS: Final = 10.0
"""How long a client may take for its TLS handshake and its request."""
_STOP_SECONDS: Final = 5.0
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client can connect to instead
# A client that vanished without a word is noticed after about a minute.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

_log: structlog.stdlib.BoundLogger = structlog.get_logger("streaming")


class StreamsPort(Protocol):
    """What streaming needs of the runtime."""

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` in a running container."""

    def attach_console(self, id_: str, stdio: Stdio) -> Console:
        """The streams of a running container."""

    def pod_connection(self, sandbox_id: str, port: int) -> socket.socket | None:
        """A stream that leads to ``port``; ``None`` where a :meth:`pod_socket` does."""

    def pod_socket(self, sandbox_id: str, family: socket.AddressFamily, port: int) -> socket.socket:
        """A TCP socket that belongs to the pod's network, to be connected to ``port``."""

    def forwarding(self, sandbox_id: str, ports: Sequence[int]) -> AbstractContextManager[dict[str, Any]]:
        """Around a session; what is put into the dictionary is told with its end."""


@dataclass(frozen=True, slots=True)
class ExecGrant:
    """A command that may be run once."""

    container_id: str
    argv: tuple[str, ...]
    stdio: Stdio


@dataclass(frozen=True, slots=True)
class AttachGrant:
    """A container that may be attached to once."""

    container_id: str
    stdio: Stdio


@dataclass(frozen=True, slots=True)
class ForwardGrant:
    """A pod whose ports (all, where none is named) may be reached over one connection."""

    sandbox_id: str
    ports: tuple[int, ...]


Grant = ExecGrant | AttachGrant | ForwardGrant
_VERBS: Final = {ExecGrant: "exec", AttachGrant: "attach", ForwardGrant: "portforward"}


def tls_context(config: StreamingConfig) -> ssl.SSLContext | None:
    """``None`` without TLS. Made for each connection, so that a renewed certificate is used at once.

    :raises InvalidInput: certificate or key cannot be used.
    """
    if not config.tls_cert_file:
        if config.tls_key_file:
            raise InvalidInput("streaming.tls_key_file", "is given without tls_cert_file")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("streaming.tls_cert_file", f"or tls_key_file cannot be used: {error}") from error
    return context


class StreamingServer:
    """Gives out URLs and serves them, from :meth:`start` to :meth:`stop`."""

    def __init__(self, config: StreamingConfig, runtime: StreamsPort) -> None:
        self._config, self._runtime = config, runtime
        self._tokens: Tokens[Grant] = Tokens()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._base = ""

    def start(self) -> None:
        """Listen.

        :raises InvalidInput: the certificate or the key cannot be used.
        :raises InternalError: the address cannot be had.
        """
        scheme = "https" if tls_context(self._config) else "http"
        address = self._config.address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, self._config.port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise InternalError(
                f"streaming: cannot listen on {address} port {self._config.port}: {error.strerror}"
            ) from error
        listener.setblocking(False)
        host = _WILDCARDS.get(address, address)
        host = f"[{host}]" if ":" in host else host
        self._base = f"{scheme}://{host}:{listener.getsockname()[1]}"
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="streaming", daemon=True)
        self._acceptor.start()

    def reconfigure(self, config: StreamingConfig) -> None:
        """Sessions to come go by its limits; those under way go on."""
        self._config = config

    def url(self, grant: Grant) -> str:
        """Where, and with which token, a client may use ``grant`` within a minute, once."""
        return f"{self._base}/{_VERBS[type(grant)]}/{self._tokens.issue(grant)}"

    def stop(self) -> None:
        """Hang up on everyone, and wait until they are gone; again is no error."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        until = time.monotonic() + _STOP_SECONDS
        if self._acceptor is not None:
            self._acceptor.join(_STOP_SECONDS)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):
            # A thread that is late still polls it.
            os.close(self._stop)
        self._stop = -1

    @property
    def sessions(self) -> int:
        """How many connections there are."""
        with self._lock:
            return len(self._threads)

    def figures(self) -> Iterable[Figure]:
        """What there is to tell of it."""
        yield gauge("forgeone_streaming_sessions", "Connections of exec, attach and port-forward.", self.sessions)

    # -- connections

    def _accept(self, listener: socket.socket) -> None:
        stop = self._stop
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(listener, select.POLLIN)
        with listener:
            while stop not in {fd for fd, _ in poll.poll()}:
                try:
                    sock, peer = listener.accept()
                except (BlockingIOError, ConnectionError):
                    continue
                except OSError as error:
                    # Out of descriptors or memory: those who have some give them back in time.
                    _log.error("accept failed", error=str(error))
                    select.select([stop], [], [], 0.2)
                    continue
                self._admit(sock, str(peer[0]), stop)

    def _admit(self, sock: socket.socket, peer: str, stop: int) -> None:
        limit = self._config.max_sessions
        if self.sessions >= limit:
            _log.warning("too many streaming sessions", peer=peer, limit=limit)
            with sock, contextlib.suppress(OSError):
                sock.setblocking(False)
                if not self._config.tls_cert_file:
                    sock.send(http.answer(503, (), "too many sessions\n"))
            return
        thread = threading.Thread(target=self._run, args=(sock, peer, stop), name="stream", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            _log.error("no thread for a session", error=str(error))
            self._left(thread, sock)

    def _left(self, thread: threading.Thread, sock: socket.socket) -> None:
        sock.close()
        with self._lock:
            self._threads.discard(thread)

    def _run(self, sock: socket.socket, peer: str, stop: int) -> None:
        try:
            self._connection(sock, peer, stop)
        except (OSError, Stopped) as error:
            _log.debug("streaming connection ended early", peer=peer, error=str(error))
        except Exception:
            _log.exception("streaming session failed", peer=peer)
        finally:
            self._left(threading.current_thread(), sock)

    def _connection(self, sock: socket.socket, peer: str, stop: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        context = tls_context(self._config)
        if context is not None:
            sock.settimeout(REQUEST_SECONDS)
            sock = context.wrap_socket(sock, server_side=True)
        with Wire(sock) as wire:
            loop = Loop(wire, stop, self._config.idle_timeout)
            try:
                request, early = _request(loop)
                grant = self._redeem(request)
                agreed = _agree(grant, request)
            except http.BadRequest as error:
                _log.info("streaming request refused", peer=peer, status=error.status, why=error.why)
                wire.send(http.answer(error.status, error.fields, error.why + "\n"))
                loop.drain()
                return
            wire.send(agreed.answer)
            self._session(loop, grant, agreed.link, early)

    def _redeem(self, request: http.Request) -> Grant:
        verb, _, token = request.path.removeprefix("/").partition("/")
        if verb not in _VERBS.values():
            raise http.BadRequest(404, "there is nothing here")
        # Told apart before the token is spent: a request that cannot be served leaves it to one that can.
        http.upgrade(request)
        grant = self._tokens.redeem(token)
        if grant is None or _VERBS[type(grant)] != verb:
            raise http.BadRequest(404, "the token is not known, was used, or is too old")
        return grant

    def _session(self, loop: Loop, grant: Grant, link: command.Link | forward.Link, early: bytes) -> None:
        runtime, started = self._runtime, time.monotonic()
        about = {"container_id": grant.container_id} if not isinstance(grant, ForwardGrant) else {}
        if isinstance(grant, ForwardGrant):
            about = {"pod_sandbox_id": grant.sandbox_id}
        log = _log.bind(verb=_VERBS[type(grant)], **about)
        log.info("session")
        end = ""
        match grant, link:
            case ExecGrant(id_, argv, stdio), command.SpdyLink() | command.WebSocketLink():
                end = command_session(loop, link, early, lambda: runtime.exec_console(id_, argv, stdio))
            case AttachGrant(id_, stdio), command.SpdyLink() | command.WebSocketLink():
                end = command_session(loop, link, early, lambda: runtime.attach_console(id_, stdio))
            case ForwardGrant(id_, ports), forward.SpdyLink() | forward.WebSocketLink() | forward.TunnelLink():
                end = self._forward(loop, link, early, id_, ports)
        log.info("session ended", end=end, seconds=round(time.monotonic() - started, 3))

    def _forward(self, loop: Loop, link: forward.Link, early: bytes, sandbox_id: str, ports: Sequence[int]) -> str:
        pod = _Pod(self._runtime, sandbox_id)
        try:
            with self._runtime.forwarding(sandbox_id, ports) as told:
                told["reached"] = pod.reached
                return forward_session(loop, link, early, pod, frozenset(ports))
        except ForgeError as error:
            return str(error)


class _Pod:
    """The ports of one, and which of them were asked for."""

    def __init__(self, runtime: StreamsPort, sandbox_id: str) -> None:
        self._runtime, self._id = runtime, sandbox_id
        self.reached: list[int] = []

    def connection(self, port: int) -> socket.socket | None:
        if port not in self.reached:
            self.reached.append(port)
        return self._runtime.pod_connection(self._id, port)

    def socket(self, family: socket.AddressFamily, port: int) -> socket.socket:
        return self._runtime.pod_socket(self._id, family, port)


def _request(loop: Loop) -> tuple[http.Request, bytes]:
    until = time.monotonic() + REQUEST_SECONDS
    data = b""
    while (found := http.split(data)) is None:
        left = until - time.monotonic()
        if left <= 0:
            raise http.BadRequest(408, "the request did not arrive in time")
        data += loop.receive(loop.poll({}, reading=True, at_most=left), reading=True)
    return found


def _agree(grant: Grant, request: http.Request) -> handshake.Agreed:
    if isinstance(grant, ForwardGrant):
        return handshake.for_forward(request, grant.ports)
    return handshake.for_command(request, grant.stdio)


def check_ports(ports: Sequence[int]) -> tuple[int, ...]:
    """Ports a client may ask for.

    :raises InvalidInput: one is none, is given twice, or there are more than channels.
    """
    for index, port in enumerate(ports):
        if not 0 < port < 1 << 16:
            raise InvalidInput(f"port[{index}]", f"{port} is not a port")
    if len(set(ports)) != len(ports):
        raise InvalidInput("port", "is given twice")
    if len(ports) > 100:
        raise InvalidInput("port", f"{len(ports)} ports are more than one connection can carry")
    return tuple(ports)
