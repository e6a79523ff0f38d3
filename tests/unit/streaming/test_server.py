"""The streaming port on a real socket, over a runtime that has one console and the host's own loopback."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cri.streaming.server import AttachGrant, ExecGrant, ForwardGrant, StreamingServer, check_ports
from engines.base import Console, Output, Stdio
from forgeone_shim.config.model import StreamingConfig
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound
from tests.e2e.streams import Client, SocketClient, SpdyClient, eventually, exit_code

V4 = "v4.channel.k8s.io"
CAT = Stdio(stdin=True, stdout=True)


class Echo:
    """A console that gives back what it gets, and exits when its input ends."""

    exited = -1

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open, self.closed = True, threading.Event()

    @property
    def readers(self) -> tuple[int, ...]:
        return (self._read,) if self._open else ()

    @property
    def writer(self) -> int:
        return self._write

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return None
        self._open = bool(data)
        return Output.STDOUT, data

    def write(self, data: bytes) -> int:
        try:
            return os.write(self._write, data) if self._write >= 0 else len(data)
        except BlockingIOError:
            return 0

    def end_input(self) -> None:
        fd, self._write = self._write, -1
        if fd >= 0:
            os.close(fd)

    def resize(self, width: int, height: int) -> None:
        """There is no terminal."""

    def finish(self) -> int:
        return 5

    def close(self) -> None:
        self.end_input()
        os.close(self._read)
        self.closed.set()


class Runtime:
    """One echo for each command; the host's network for each pod."""

    def __init__(self) -> None:
        self.consoles: list[Echo] = []
        self.machine: dict[int, socket.socket] = {}

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Console:
        if id_ == "gone":
            raise NotFound("container", id_)
        self.consoles.append(Echo())
        return self.consoles[-1]

    def attach_console(self, id_: str, stdio: Stdio) -> Console:
        return self.exec_console(id_, (), stdio)

    def pod_connection(self, sandbox_id: str, port: int) -> socket.socket | None:
        if sandbox_id != "machine":
            return None
        if port not in self.machine:
            raise FailedPrecondition("connection refused")
        return self.machine.pop(port)

    def pod_socket(self, sandbox_id: str, family: socket.AddressFamily, port: int) -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM)

    def forwarding(self, sandbox_id: str, ports: Sequence[int]) -> AbstractContextManager[dict[str, object]]:
        return nullcontext({})


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@contextlib.contextmanager
def served(runtime: Runtime, config: StreamingConfig) -> Iterator[StreamingServer]:
    server = StreamingServer(config, runtime)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        assert server.sessions == 0
        assert all(console.closed.is_set() for console in runtime.consoles)


@pytest.fixture
def server(runtime: Runtime) -> Iterator[StreamingServer]:
    with served(runtime, StreamingConfig()) as server:
        yield server


def certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return cert_file, key_file


def echo(url: str, body: bytes) -> None:
    with SpdyClient(url, V4) as client:
        error, stdin, stdout = (client.open(streamType=kind) for kind in ("error", "stdin", "stdout"))
        sender = threading.Thread(target=client.say, args=(stdin, body), kwargs={"fin": True})
        if url.startswith("https"):
            client.say(stdin, body, fin=True)
        else:
            sender.start()
        client.rest()
        assert client.heard[stdout] == body
        assert exit_code(client.heard[error]) == 5
        if sender.ident:
            sender.join()


def test_more_than_every_buffer_goes_both_ways(server: StreamingServer) -> None:
    echo(server.url(ExecGrant("c", ("cat",), CAT)), os.urandom(8 << 20))


def test_a_client_may_come_by_tls(runtime: Runtime, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    config = StreamingConfig(tls_cert_file=str(cert), tls_key_file=str(key))
    with served(runtime, config) as server:
        url = server.url(AttachGrant("c", CAT))
        assert url.startswith("https://127.0.0.1:")
        echo(url, os.urandom(200_000))


def test_a_certificate_that_cannot_be_used_is_said_at_the_start(runtime: Runtime, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    key.write_text("nonsense")
    for config in (
        StreamingConfig(tls_cert_file=str(cert), tls_key_file=str(key)),
        StreamingConfig(tls_key_file=str(key)),
    ):
        with pytest.raises(InvalidInput, match=r"streaming\.tls"):
            StreamingServer(config, runtime).start()


def test_an_address_that_is_taken_is_said_so(server: StreamingServer, runtime: Runtime) -> None:
    port = int(server.url(AttachGrant("c", CAT)).split(":")[2].split("/")[0])
    with pytest.raises(ForgeError, match=f"port {port}"):
        StreamingServer(replace(StreamingConfig(), port=port), runtime).start()


def test_a_failure_to_start_is_told_on_the_error_stream(server: StreamingServer) -> None:
    with SocketClient(server.url(ExecGrant("gone", ("cat",), CAT)), V4) as client:
        client.rest()
    assert b"container 'gone' not found" in client.heard[3]


def test_an_idle_session_ends(runtime: Runtime) -> None:
    with (
        served(runtime, StreamingConfig(idle_timeout=1)) as server,
        SocketClient(server.url(ExecGrant("c", ("cat",), CAT)), V4) as client,
    ):
        client.say(0, b"x")
        client.rest()
        assert b"nothing was sent for 1 s" in client.heard[3]


def test_no_more_sessions_than_may_be(runtime: Runtime) -> None:
    with served(runtime, StreamingConfig(max_sessions=1)) as server:
        first, second = server.url(ExecGrant("c", ("cat",), CAT)), server.url(AttachGrant("c", CAT))
        with SocketClient(first, V4), Client(second, "GET", {"Upgrade": "websocket"}) as refused:
            assert refused.status == 503
        eventually(lambda: server.sessions == 0)
        echo(server.url(AttachGrant("c", CAT)), b"room again")


def test_a_client_that_goes_takes_its_console_with_it(server: StreamingServer, runtime: Runtime) -> None:
    with SocketClient(server.url(ExecGrant("c", ("cat",), CAT)), V4) as client:
        client.say(0, b"x")
        client.until(lambda: client.heard[1] == b"x")
    assert runtime.consoles[0].closed.wait(5)


def test_a_request_that_cannot_be_served_leaves_the_token(server: StreamingServer) -> None:
    url = server.url(AttachGrant("c", CAT))
    with Client(url, "GET", {"Host2": "x"}) as plain:
        assert plain.status == 400
    echo(url, b"still good")


def test_only_ports_that_were_named_are_reached(server: StreamingServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        with SpdyClient(server.url(ForwardGrant("p", (port,))), "portforward.k8s.io") as client:
            named = {"port": str(port), "requestID": "1"}
            _, data = (client.open(streamType=kind, **named) for kind in ("error", "data"))
            peer, _ = target.accept()
            client.say(data, b"hello")
            assert peer.recv(9) == b"hello"
            other = {"port": "1", "requestID": "2"}
            error, _ = (client.open(streamType=kind, **other) for kind in ("error", "data"))
            client.until(lambda: error in client.ended)
            assert b"not among" in client.heard[error]
        peer.settimeout(5)
        assert peer.recv(9) == b""
        peer.close()


def test_a_machines_port_is_whatever_its_engine_leads_to(server: StreamingServer, runtime: Runtime) -> None:
    mine, theirs = socket.socketpair()
    runtime.machine[80] = theirs
    with mine, SpdyClient(server.url(ForwardGrant("machine", ())), "portforward.k8s.io") as client:
        mine.settimeout(5)
        error, data = (client.open(streamType=kind, port="80", requestID="1") for kind in ("error", "data"))
        client.say(data, b"hello")
        assert mine.recv(9) == b"hello"
        mine.sendall(b"hi")
        mine.shutdown(socket.SHUT_WR)
        client.until(lambda: data in client.ended)
        assert client.heard[data] == b"hi"
        error, _ = (client.open(streamType=kind, port="81", requestID="2") for kind in ("error", "data"))
        client.until(lambda: error in client.ended)
        assert b"connection refused" in client.heard[error]


@pytest.mark.parametrize("ports", [[0], [65536], [80, 80], list(range(1, 102))])
def test_ports_that_cannot_be_forwarded_are_refused(ports: list[int]) -> None:
    with pytest.raises(InvalidInput):
        check_ports(ports)
