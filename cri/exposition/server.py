"""The port that Prometheus reads: one answer for each connection, a few at a time, each with an end in time."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_write
from typing import Any, Final, TextIO
from wsgiref.simple_server import WSGIRequestHandler

import structlog

from forgeone_shim.config import checks
from forgeone_shim.config.model import MetricsConfig
from forgeone_shim.errors import InternalError, InvalidInput

SECONDS: Final = 20.0
"""What one connection may take altogether: its handshake, its request and the answer."""
AT_ONCE: Final = 4
"""Connections that are answered at a time; others wait in the kernel. Two Prometheus servers are usual."""
_BACKLOG: Final = 16
_STOP_SECONDS: Final = 5.0

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger("metrics")


def tls_context(config: MetricsConfig) -> ssl.SSLContext | None:
    """``None`` without TLS.

    :raises InvalidInput: certificate, key or authorities cannot be used.
    """
    if not config.tls_cert_file:
        for key in ("tls_key_file", "client_ca_file"):
            if getattr(config, key):
                raise InvalidInput(f"metrics.{key}", "is given without tls_cert_file")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("metrics.tls_cert_file", f"or tls_key_file cannot be used: {error}") from error
    if config.client_ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput("metrics.client_ca_file", f"cannot be used: {error}") from error
    return context


class MetricsServer:
    """Serves applications by their paths, from :meth:`start` to :meth:`stop`."""

    def __init__(self, config: MetricsConfig, apps: Mapping[str, App]) -> None:
        self._config, self._apps = config, dict(apps)
        self._free = threading.Semaphore(AT_ONCE)
        self._stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self._stopping = False
        self._acceptor: threading.Thread | None = None
        self._endpoint = ("", 0)

    @property
    def port(self) -> int:
        """What it listens on."""
        return self._endpoint[1]

    def start(self) -> None:
        """Listen.

        :raises InvalidInput: the certificate, its key or the authorities cannot be used.
        :raises InternalError: the address cannot be had.
        """
        tls_context(self._config)
        address, port = checks.split_endpoint("metrics.address", self._config.address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            # "[::]" means every address, of both families, as it does for a kubelet.
            listener = socket.create_server(
                (address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=address == "::"
            )
        except (OSError, ValueError) as error:
            raise InternalError(f"metrics: cannot listen on {self._config.address}: {error}") from error
        listener.setblocking(False)
        self._endpoint = listener.getsockname()[:2]
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="metrics", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Listen no more; answers under way have their time, and threads that give them keep nothing up."""
        if self._stopping:
            return
        self._stopping = True
        eventfd_write(self._stop, 1)
        # The acceptor may wait for one of its connections to end.
        self._free.release()
        if self._acceptor is not None:
            self._acceptor.join(_STOP_SECONDS)
        if self._acceptor is None or not self._acceptor.is_alive():
            close(self._stop)

    def _accept(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(listener, select.POLLIN)
        with listener:
            while True:
                self._free.acquire()
                if self._stop in {fd for fd, _ in poll.poll()}:
                    return
                try:
                    sock, peer = listener.accept()
                except OSError as error:
                    self._free.release()
                    if not isinstance(error, BlockingIOError | ConnectionError):
                        # Out of descriptors or memory: those who have some give them back in time.
                        _log.error("accept failed", error=str(error))
                        select.select([self._stop], [], [], 0.2)
                    continue
                try:
                    threading.Thread(target=self._serve, args=(sock, peer), name="scrape", daemon=True).start()
                except RuntimeError as error:
                    # No more threads may be had: whoever scrapes comes again.
                    _log.error("scrape refused", error=str(error))
                    sock.close()
                    self._free.release()

    def _serve(self, sock: socket.socket, peer: Any) -> None:
        wires = [sock]
        # A client that sends a byte now and then never meets the timeout of a single read.
        end = threading.Timer(SECONDS, _hang_up, (wires,))
        end.daemon = True
        end.start()
        try:
            sock.settimeout(SECONDS)
            context = tls_context(self._config)
            if context is not None:
                secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                wires.append(secured)
                secured.do_handshake()
            _Request(wires[-1], peer, _Site(self.port, self._answer))  # type: ignore[arg-type]
        except (OSError, InvalidInput) as error:
            _log.info("scrape failed", peer=peer[0], error=str(error))
        finally:
            end.cancel()
            for wire in wires:
                wire.close()
            self._free.release()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        app = self._apps.get(environ["PATH_INFO"])
        if app is None:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"what there is: {' '.join(self._apps)}\n".encode()]
        try:
            return app(environ, start_response)
        except Exception:
            _log.exception("metrics cannot be told")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"see forgeoned's log\n"]


class _Site:
    """What the library's request handler asks of its server."""

    def __init__(self, port: int, app: App) -> None:
        self.base_environ = {
            "SERVER_NAME": "forgeoned",
            "SERVER_PORT": str(port),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REMOTE_HOST": "",
            "CONTENT_LENGTH": "",
            "SCRIPT_NAME": "",
        }
        self._app = app

    def get_app(self) -> App:
        """What answers."""
        return self._app


class _Request(WSGIRequestHandler):
    """HTTP/1.0 to the client: the connection ends with the answer."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: Prometheus comes several times a minute."""

    def get_stderr(self) -> TextIO:
        """Nowhere: what matters is in the log, and a client that hung up does not."""
        return io.StringIO()


def _hang_up(wires: Sequence[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        wires[-1].shutdown(socket.SHUT_RDWR)
