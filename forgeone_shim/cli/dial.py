"""A connection to the URL that Exec, Attach or PortForward answers with, gone over to its protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from cri.api import runtime_pb2 as cri
from cri.streaming import websocket
from cri.streaming.wire import Wire
from forgeone_shim.cli.client import Client, RemoteError
from forgeone_shim.errors import PermissionDenied, Unavailable

SECONDS: Final = 10.0
"""How long forgeoned may take to answer."""

_MAX_HEAD: Final = 32 * 1024
_MAX_WHY: Final = 4096
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})\b[^\r\n]*\r\n")


@dataclass(frozen=True, slots=True)
class Dialled:
    """The connection, and what forgeoned sent on it right after its answer."""

    wire: Wire
    early: bytes


def websocket_to(client: Client, url: str, protocol: str) -> Dialled:
    """Go over to WebSocket with a subprotocol (RFC 6455 section 4.1).

    :raises Unavailable: nobody answers. RemoteError: forgeoned refuses. PermissionDenied: it is not forgeoned.
    """
    key = base64.b64encode(os.urandom(16)).decode()
    fields = {
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": protocol,
    }
    expected = {"sec-websocket-accept": websocket.accept_key(key), "sec-websocket-protocol": protocol}
    return _upgraded(client, url, "GET", fields, expected)


def spdy_to(client: Client, url: str, protocol: str) -> Dialled:
    """Go over to SPDY/3.1 with a stream protocol of Kubernetes'.

    :raises Unavailable: nobody answers. RemoteError: forgeoned refuses. PermissionDenied: it is not forgeoned.
    """
    fields = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol}
    return _upgraded(client, url, "POST", fields, {"upgrade": "SPDY/3.1", "x-stream-protocol-version": protocol})


def _upgraded(client: Client, url: str, method: str, fields: Mapping[str, str], expected: Mapping[str, str]) -> Dialled:
    parts = urlsplit(url)
    sock = _connected(parts, lambda: certificate(client))
    try:
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        head, early = _head(sock)
        found = _fields(head)
        for name, value in expected.items():
            if found.get(name) != value:
                raise RemoteError("HTTP 101", f"the answer's {name} is {found.get(name, 'missing')!r}, not {value!r}")
        return Dialled(Wire(sock), early)
    except OSError as error:
        sock.close()
        raise Unavailable(f"forgeoned's streaming port {parts.netloc}: {error}") from error
    except BaseException:
        sock.close()
        raise


def _connected(parts: SplitResult, pinned: Callable[[], bytes]) -> socket.socket:
    if parts.scheme not in {"http", "https"} or not parts.hostname or not parts.port:
        raise RemoteError("INTERNAL", f"{parts.scheme}://{parts.netloc} is not a URL to stream through")
    try:
        sock = socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)
    except OSError as error:
        raise Unavailable(f"forgeoned's streaming port {parts.netloc}: {error}") from error
    if parts.scheme == "http":
        return sock
    try:
        return _secured(sock, pinned())
    except OSError as error:
        sock.close()
        raise Unavailable(f"forgeoned's streaming port {parts.netloc}: {error}") from error
    except BaseException:
        sock.close()
        raise


def _secured(sock: socket.socket, pinned: bytes) -> ssl.SSLSocket:
    """TLS with whoever holds the key of exactly that certificate: neither its name nor who signed it says more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    secured = context.wrap_socket(sock)
    if secured.getpeercert(binary_form=True) != pinned:
        secured.close()
        raise PermissionDenied("the streaming port has another certificate than streaming.tls_cert_file")
    return secured


def certificate(client: Client) -> bytes:
    """The certificate (DER) of forgeoned's streaming port: the first of the file that its configuration names.

    The configuration is asked for on the socket, which is root's, and the file is this host's.
    """
    info = client.call(client.runtime.Status, cri.StatusRequest(verbose=True)).info
    try:
        path = Path(json.loads(info["config"])["streaming"]["tls_cert_file"])
        text = path.read_text(encoding="ascii", errors="replace")
        start = text.index(ssl.PEM_HEADER)
        return ssl.PEM_cert_to_DER_cert(text[start : text.index(ssl.PEM_FOOTER, start) + len(ssl.PEM_FOOTER)])
    except (KeyError, ValueError, TypeError) as error:
        raise PermissionDenied(f"the certificate of the streaming port cannot be told: {error}") from error
    except OSError as error:
        raise PermissionDenied(f"streaming.tls_cert_file {path}: {error.strerror}") from error


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head of the answer and what follows it; RemoteError with the reason where it is not 101."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece or len(data) > _MAX_HEAD:
            raise RemoteError("HTTP", f"the answer is none: {data[:100]!r}")
        data += piece
    status = _STATUS.match(data)
    if status is None:
        raise RemoteError("HTTP", f"the answer is none: {data[:100]!r}")
    head, _, rest = data.partition(b"\r\n\r\n")
    if status[1] == b"101":
        return head, rest
    while len(rest) < _MAX_WHY and (piece := sock.recv(_MAX_WHY)):
        rest += piece
    raise RemoteError(f"HTTP {status[1].decode()}", rest[:_MAX_WHY].decode(errors="replace").strip())


def _fields(head: bytes) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
