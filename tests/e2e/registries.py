"""Registries that ask who is there: Debian's docker-registry with TLS, logins or tokens, and a line that breaks."""

from __future__ import annotations

import base64
import datetime
import http.server
import ipaddress
import json
import os
import select
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USER, PASSWORD = "alice", "s3cret"
FAR = "far.example"
_HTPASSWD = f"{USER}:$2b$04$Skz3RDvROGE9KXH3Fx7R6O4JX5RgK8V9Jm7MP4snXPaseTLc.G026\n"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate, its key, and where both are as PEM files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    cert_file: Path
    key_file: Path


def certificate(folder: Path, name: str, issuer: Pair | None = None) -> Pair:
    """A certificate for loopback and :data:`FAR`, signed by ``issuer``; without one, a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        names = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(FAR))
        address = x509.SubjectAlternativeName(names)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(address, critical=False).add_extension(usage, critical=False)
    signed = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Pair(signed, key, cert_file, key_file)


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy's CONNECT; whatever it is asked for, the other end is the server's ``target``."""

    def handle(self) -> None:
        """Tell the server the request's first line, then carry bytes both ways."""
        asked = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        host, _, port = self.server.target.rpartition(":")  # type: ignore[attr-defined]
        self.server.seen.append(asked.decode().strip())  # type: ignore[attr-defined]
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), (), ())[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)


@contextmanager
def connect_proxy(target: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy that leads to ``target``. Yields its URL and what it was asked for."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as server:
        server.target, server.seen = target, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.seen  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def docker_registry(folder: Path, data: Path, **http_and_auth: object) -> Iterator[str]:
    """A docker-registry over existing data; the settings are parts of its configuration. Yields its address."""
    program = shutil.which("docker-registry")
    assert program is not None, "apt-get install docker-registry"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(data)}},
        "http": {"addr": address, **({"tls": http_and_auth.pop("tls")} if "tls" in http_and_auth else {})},
        **http_and_auth,
    }
    folder.mkdir()
    (folder / "registry.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "registry.yml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        _answers(address, process, folder / "registry.log")
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.partition(":")
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection((host, int(port)), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"docker-registry does not answer: {log.read_text()}")


def htpasswd(folder: Path) -> dict[str, object]:
    """The ``auth`` part of a configuration that knows :data:`USER`."""
    path = folder / "htpasswd"
    path.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": "test", "path": str(path)}}


class TokenServer:
    """Gives docker-registry's kind of tokens to :data:`USER`, or for a refresh token that is :data:`PASSWORD`."""

    def __init__(self, folder: Path) -> None:
        self._pair = certificate(folder, "token-issuer")
        self.seen: list[str] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                self._answer(self.headers.get("Authorization") == login, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._answer(form.get("refresh_token") == [PASSWORD], form)

            def _answer(self, allowed: bool, asked: dict[str, list[str]]) -> None:
                owner.seen.append(f"{self.command} {asked.get('scope')}")
                token = owner.token(asked["scope"][0], asked["service"][0]) if allowed else ""
                body = json.dumps({"token": token, "access_token": token}).encode() if allowed else b"{}"
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def settings(self) -> dict[str, object]:
        """The ``auth`` part of the registry's configuration."""
        realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        bundle = str(self._pair.cert_file)
        return {"token": {"realm": realm, "service": "test", "issuer": "issuer", "rootcertbundle": bundle}}

    def token(self, scope: str, service: str) -> str:
        """A JSON web token that allows what the scope asks for."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        certificate_der = self._pair.certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate_der).decode()]}
        claims = {
            "iss": "issuer",
            "sub": USER,
            "aud": service,
            "exp": now + 60,
            "nbf": now - 60,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._pair.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class BadLine:
    """A TCP proxy that ends every connection after so many bytes from the far side.

    A silent one falls silent for good, on all connections, once that many have passed in all.
    """

    def __init__(self, target: str, after: int, *, silent: bool = False) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._each = after
        self._in_all = after
        self._silent = silent
        self._over = threading.Event()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._carry, args=(near,)))
            self._threads[-1].start()

    def _carry(self, near: socket.socket) -> None:
        left = self._each
        with near, socket.create_connection(self._target) as far:
            while not self._over.is_set():
                left = self._in_all if self._silent else left
                if left <= 0 and self._silent:
                    self._over.wait(30)
                if left <= 0:
                    return
                ready, _, _ = select.select([near, far], [], [], 0.1)
                for side in ready:
                    data = side.recv(65536 if side is near else min(65536, left))
                    if not data:
                        return
                    (far if side is near else near).sendall(data)
                    if side is far:
                        left -= len(data)
                        self._in_all -= len(data)

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
