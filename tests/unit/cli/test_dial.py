"""Connecting to the streaming port: what is asked, what is believed."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from forgeone_shim.cli import dial
from forgeone_shim.cli.client import Client, RemoteError
from forgeone_shim.errors import PermissionDenied, Unavailable

V5 = "v5.channel.k8s.io"


def pem(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, until)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def node(certificate: str = "") -> Client:
    """A node whose Status names a certificate."""
    info = {"config": json.dumps({"streaming": {"tls_cert_file": certificate}})}
    fake: Any = SimpleNamespace(
        runtime=SimpleNamespace(Status=None), call=lambda _method, _request: SimpleNamespace(info=info)
    )
    return cast(Client, fake)


@contextlib.contextmanager
def answering(answer: bytes, certificate: Path | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """The URL of something that answers one request so, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), sock:
                if certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(certificate)
                    sock = context.wrap_socket(sock, server_side=True)
                asked.append(sock.recv(65536))
                sock.sendall(answer)
                sock.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/exec/token", asked
        thread.join(5)


def test_a_refusal_is_told_in_the_servers_words() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\ngone\n"
    with answering(answer) as (url, asked), pytest.raises(RemoteError, match="HTTP 404: gone"):
        dial.websocket_to(node(), url, V5)
    assert asked[0].startswith(b"GET /exec/token HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"x" * 99999]
)
def test_who_does_not_speak_websocket_is_not_believed(answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises(RemoteError):
        dial.websocket_to(node(), url, V5)


def test_nobody_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=r"streaming port 127\.0\.0\.1"):
        dial.spdy_to(node(), f"http://127.0.0.1:{port}/portforward/x", "portforward.k8s.io")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1/x", "http:///x", "http://127.0.0.1/x", "nonsense"])
def test_what_is_no_url_to_stream_through_is_not_followed(url: str) -> None:
    with pytest.raises(RemoteError, match="is not a URL"):
        dial.spdy_to(node(), url, "portforward.k8s.io")


def test_what_follows_the_answer_is_kept() -> None:
    answer = b"HTTP/1.1 101 x\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\nearly"
    with answering(answer) as (url, asked):
        dialled = dial.spdy_to(node(), url, "portforward.k8s.io")
        with dialled.wire:
            assert dialled.early == b"early"
    assert asked[0].startswith(b"POST ")


def test_by_tls_only_the_configured_certificate_is_spoken_to(tmp_path: Path) -> None:
    real, other = pem(tmp_path / "real.pem"), pem(tmp_path / "other.pem")
    with answering(b"HTTP/1.1 404 x\r\n\r\nreached", real) as (url, _), pytest.raises(RemoteError, match="reached"):
        dial.websocket_to(node(str(real)), url, V5)
    with answering(b"", other) as (url, asked), pytest.raises(PermissionDenied, match="another certificate"):
        dial.websocket_to(node(str(real)), url, V5)
    assert b"token" not in b"".join(asked), "the token is for forgeoned alone"


@pytest.mark.parametrize("certificate", ["", "/no/such/file"])
def test_by_tls_without_a_certificate_to_compare_nothing_is_spoken(certificate: str, tmp_path: Path) -> None:
    with answering(b"", pem(tmp_path / "a.pem")) as (url, asked), pytest.raises(PermissionDenied):
        dial.websocket_to(node(certificate), url, V5)
    assert b"token" not in b"".join(asked)
