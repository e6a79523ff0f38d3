"""HTTPS: what is answered, what is refused, and that nobody can keep the API server out."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from cri.admission import certificates, review, service, tls
from cri.admission.certificates import Pair, State, Terms
from cri.admission.known import Known
from cri.admission.metrics import Metrics
from cri.admission.server import Budget, Limits, Server
from cri.admission.service import Service
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.errors import FailedPrecondition
from tests.unit.admission.test_review import question

NAMES = ("localhost",)
TERMS = Terms(names=NAMES, certificate=timedelta(days=1), ca=timedelta(days=2))
JSON = {"Content-Type": "application/json"}


def fresh() -> State:
    return certificates.renewed(State(), TERMS, datetime.now(UTC))


STATE = fresh()


def pair(state: State) -> Pair:
    assert state.tls is not None
    return state.tls


def believing(state: State = STATE) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificates.bundle(state, datetime.now(UTC)).decode())


@contextmanager
def serving(*, known: Known | None = None, callers: Any = None, client_ca: str = "", **limits: Any) -> Iterator[Server]:
    meters = Metrics()
    answering = Service(meters, callers=callers)
    if known is not None:
        answering.follow(known)
        answering.lacks(frozenset())
    server = Server(("127.0.0.1", 0), answering, Limits(**({"seconds": 5.0} | limits)))
    secured = tls.Secured(server.secure, client_ca)
    secured.certificate(pair(STATE))
    server.start()
    try:
        yield server
    finally:
        server.stop(1.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(known=Known()) as found:
        yield found


def connect(server: Server, context: ssl.SSLContext | None = None) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("localhost", server.port, context=context or believing(), timeout=10)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, headers: Any = None
) -> tuple[int, bytes]:
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read()


def raw(server: Server) -> ssl.SSLSocket:
    return believing().wrap_socket(
        socket.create_connection(("127.0.0.1", server.port), 10), server_hostname="localhost"
    )


def until_closed(stream: socket.socket) -> bytes:
    data = b""
    try:
        while part := stream.recv(65536):
            data += part
    except OSError:
        pass
    return data


def test_many_questions_on_one_connection(server: Server) -> None:
    connection = connect(server)
    for mode in ("true", "maybe", "false"):
        code, body = ask(
            connection, "POST", "/validate?timeout=5s", json.dumps(question({f"{PREFIX}exec": mode})), JSON
        )
        assert code == 200
        assert json.loads(body)["response"]["allowed"] is (mode != "maybe")
        assert connection.sock is not None
    assert ask(connection, "GET", "/healthz") == (200, b"ok\n")
    assert ask(connection, "GET", "/readyz") == (200, b"ok\n")
    code, body = ask(connection, "GET", "/metrics")
    assert code == 200
    told = body.decode()
    assert 'forgeone_admission_reviews_total{allowed="false",cause="contract",kind="Pod",path="/validate"} 1.0' in told
    assert 'forgeone_admission_review_seconds_count{path="/validate"} 3.0' in told
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/validate", {}, 405),
        ("POST", "/healthz", JSON, 405),
        ("POST", "/else", JSON, 404),
        ("POST", "/validate", {"Content-Type": "text/plain"}, 415),
        ("POST", "/validate", JSON, 400),
        ("POST", "/validate", {**JSON, "Content-Length": "+2"}, 411),
        ("POST", "/validate", {**JSON, "Content-Length": "99999999"}, 413),
        ("POST", "/validate", {**JSON, "Content-Length": "9" * 40}, 411),
        ("POST", "/validate", {**JSON, "Transfer-Encoding": "chunked"}, 411),
        ("PUT", "/validate", JSON, 501),
    ],
)
def test_what_is_no_question_is_refused(server: Server, method: str, path: str, headers: Any, code: int) -> None:
    connection = connect(server)
    assert ask(connection, method, path, b"{}" if method != "GET" else None, headers)[0] == code
    connection.close()


def test_nothing_is_answered_before_everything_is_known() -> None:
    with serving() as server:
        connection = connect(server)
        assert ask(connection, "GET", "/healthz")[0] == 200
        assert ask(connection, "GET", "/readyz") == (503, b"waiting for the cluster\n")
        code, body = ask(connection, "POST", "/validate", json.dumps(question()), JSON)
        assert (code, body) == (503, b"waiting for the cluster\n")
        connection.close()


def test_a_review_that_fails_is_an_error_and_tells_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, known: Known) -> review.Answer:
        raise RuntimeError(f"{data!r} {known!r} hunter2")

    monkeypatch.setattr(service, "_REVIEWS", {"/validate": broken})
    with capture_logs() as logs:
        code, body = ask(connect(server), "POST", "/validate", json.dumps(question()), JSON)
    assert (code, body) == (500, b"the review failed\n")
    assert [one["event"] for one in logs] == ["review failed"]
    assert "hunter2" not in str(logs)


def test_logs_have_nothing_of_what_was_looked_at(server: Server) -> None:
    with capture_logs() as logs:
        connection = connect(server)
        bad = question({f"{PREFIX}hunter2": "hunter2", "hunter2": "hunter2"}, metadata={"name": "hunter2"})
        assert ask(connection, "POST", "/validate", json.dumps(bad), JSON)[0] == 200
        assert ask(connection, "POST", "/validate", b'{"hunter2": 1}', JSON)[0] == 400
        assert ask(connection, "GET", "/hunter2")[0] == 404
    assert [one["event"] for one in logs] == ["refused", "no review"]
    assert "hunter2" not in str(logs)
    assert logs[0]["cause"] == "contract"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_older_tls_is_refused(server: Server) -> None:
    for version, taken in (
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ):
        context = believing()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        connection = connect(server, context)
        if taken:
            assert ask(connection, "GET", "/healthz")[0] == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                connection.connect()
        connection.close()


def test_a_new_certificate_counts_for_new_connections(server: Server) -> None:
    before = connect(server)
    assert ask(before, "GET", "/healthz")[0] == 200
    other = fresh()
    server.secure(tls.context(pair(other)))
    assert ask(before, "GET", "/healthz")[0] == 200
    assert ask(connect(server, believing(other)), "GET", "/healthz")[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server).connect()
    before.close()


def test_a_key_of_another_certificate_cannot_be_used() -> None:
    with pytest.raises(FailedPrecondition, match="cannot be used"):
        tls.context(Pair(pair(STATE).certificate, pair(fresh()).key))


def caller(directory: Path, name: str) -> tuple[bytes, ssl.SSLContext]:
    """An authority (PEM), and a client that shows what it has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(named, named, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / name).write_bytes(pem + key.private_bytes(*form))
    shown = believing()
    shown.load_cert_chain(directory / name)
    return pem, shown


def test_callers_need_a_certificate_where_that_is_asked_for(tmp_path: Path) -> None:
    pem, shown = caller(tmp_path, "api-server")
    (tmp_path / "ca").write_bytes(pem)
    body = json.dumps(question())
    for callers, code in ((frozenset(), 200), (frozenset({"api-server"}), 200), (frozenset({"else"}), 403)):
        with serving(known=Known(), callers=callers, client_ca=str(tmp_path / "ca")) as server:
            assert ask(connect(server), "GET", "/healthz")[0] == 200
            assert ask(connect(server), "POST", "/validate", body, JSON)[0] == 403
            assert ask(connect(server, shown), "POST", "/validate", body, JSON)[0] == code


def test_authorities_of_callers_are_believed_as_they_change(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    file = tmp_path / "mounted" / "ca"
    (one, first), (two, second) = caller(tmp_path, "first"), caller(tmp_path, "second")
    file.write_bytes(one)
    used: list[ssl.SSLContext] = []
    changed = threading.Condition()

    def use(found: ssl.SSLContext) -> None:
        with changed:
            used.append(found)
            changed.notify_all()

    secured = tls.Secured(use, str(file))
    secured.authorities()
    assert used == []
    secured.certificate(pair(STATE))
    watched = tls.Watched(file.parent, secured.authorities)
    thread = threading.Thread(target=watched.run)
    thread.start()
    try:
        with serving(known=Known(), callers=frozenset()) as server:
            for times, believed, shown, other in ((1, one, first, second), (2, two, second, first)):
                (file.parent / "new").write_bytes(b"none")
                (file.parent / "new").replace(file)
                (file.parent / "new").write_bytes(believed)
                (file.parent / "new").replace(file)
                with changed:
                    assert changed.wait_for(lambda: len(used) == times, 10)  # noqa: B023
                    server.secure(used[-1])
                assert ask(connect(server, shown), "POST", "/validate", json.dumps(question()), JSON)[0] == 200
                with pytest.raises(OSError):
                    ask(connect(server, other), "POST", "/validate", json.dumps(question()), JSON)
    finally:
        watched.stop()
        thread.join()
    # What is no authority leaves those before in use.
    file.write_bytes(b"none")
    with pytest.raises(FailedPrecondition, match="cannot be used"):
        secured.authorities()


def test_whoever_is_slow_is_cut_off() -> None:
    with serving(known=Known(), seconds=0.3) as server:
        # No handshake, half a head, and half a body, each a byte at a time.
        silent = socket.create_connection(("127.0.0.1", server.port), 10)
        half, body = raw(server), raw(server)
        half.sendall(b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-")
        body.sendall(head(99))
        began = time.monotonic()
        for _ in range(3):
            time.sleep(0.05)
            half.sendall(b"L")
            body.sendall(b"{")
        for one in (silent, half, body):
            until_closed(one)
            one.close()
        assert time.monotonic() - began < 3
        assert ask(connect(server), "GET", "/healthz")[0] == 200


def test_idle_connections_give_way_to_new_ones() -> None:
    with serving(known=Known(), connections=3) as server:
        idle = [connect(server) for _ in range(3)]
        for one in idle:
            assert ask(one, "GET", "/healthz")[0] == 200
        time.sleep(0.05)
        for _ in range(5):
            another = connect(server)
            assert ask(another, "GET", "/healthz")[0] == 200
        # The oldest went first.
        assert until_closed(idle[0].sock) == b""
        for one in idle:
            one.close()


def test_a_connection_beyond_those_that_work_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    going, asked = threading.Event(), threading.Event()

    def slow(data: bytes, known: Known) -> review.Answer:
        asked.set()
        assert going.wait(10)
        return review.validate(data, known)

    monkeypatch.setattr(service, "_REVIEWS", {"/validate": slow})
    with serving(known=Known(), connections=1) as server:
        found: list[int] = []
        body = json.dumps(question())

        def one() -> None:
            found.append(ask(connect(server), "POST", "/validate", body, {**JSON, "Connection": "close"})[0])

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert asked.wait(10)
        going.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]


def test_a_request_under_way_is_answered_when_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    going, asked = threading.Event(), threading.Event()

    def slow(data: bytes, known: Known) -> review.Answer:
        asked.set()
        assert going.wait(10)
        return review.validate(data, known)

    monkeypatch.setattr(service, "_REVIEWS", {"/validate": slow})
    with serving(known=Known()) as server:
        idle = connect(server)
        assert ask(idle, "GET", "/healthz")[0] == 200
        found: list[int] = []
        client = threading.Thread(
            target=lambda: found.append(ask(connect(server), "POST", "/validate", json.dumps(question()), JSON)[0])
        )
        client.start()
        assert asked.wait(10)
        stopping = threading.Thread(target=server.stop, args=(10.0,))
        stopping.start()
        # The idle one is closed, and by then no other is taken.
        assert until_closed(idle.sock) == b""
        with pytest.raises(OSError):
            connect(server).connect()
        going.set()
        client.join()
        stopping.join()
        assert found == [200]


def head(length: int) -> bytes:
    lines = (
        "POST /validate HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def test_whoever_holds_large_bodies_keeps_nobody_waiting(server: Server) -> None:
    holding = [raw(server) for _ in range(3)]
    for one in holding:
        one.sendall(head(server.limits.body))
    began = time.monotonic()
    connection = connect(server)
    for _ in range(20):
        assert ask(connection, "POST", "/validate", json.dumps(question()), JSON)[0] == 200
    assert time.monotonic() - began < server.limits.seconds / 2
    connection.close()
    for one in holding:
        one.close()


@pytest.mark.parametrize("many", [b"[],", b'{"a":0},', b"[[[],0],0],"])
def test_a_body_that_would_become_much_more_is_refused(server: Server, many: bytes) -> None:
    whole = json.dumps(question())
    before, after = whole.replace('"spec"', '"x": [MANY], "spec"').encode().split(b"MANY")
    body = before + many * ((server.limits.body - len(whole) - 100) // len(many)) + b"0" + after
    connection = connect(server)
    assert ask(connection, "POST", "/validate", body, JSON) == (503, b"too much at a time\n")
    connection.close()
    told = ask(connect(server), "GET", "/metrics")[1]
    assert b'forgeone_admission_faults_total{code="503",path="/validate"} 1.0' in told
    # What is long and has few values is none.
    body = before + b'"' + b"a" * (server.limits.body - len(whole) - 100) + b'"' + after
    assert ask(connect(server), "POST", "/validate", body, JSON)[0] == 200


def test_a_head_has_an_end(server: Server) -> None:
    stream = raw(server)
    line = b"X: " + b"a" * 1000 + b"\r\n"
    with suppress(OSError):
        stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + line * 90 + b"\r\n")
    assert until_closed(stream) == b""
    stream.close()
    # Each request of a connection has room of its own.
    connection = connect(server)
    for _ in range(5):
        assert ask(connection, "GET", "/healthz", headers={"X": "a" * 20_000})[0] == 200
        assert ask(connection, "POST", "/validate", json.dumps(question()) + " " * 60_000, JSON)[0] == 200
    connection.close()


def test_bodies_have_one_budget() -> None:
    budget = Budget(10)
    soon = time.monotonic() + 0.05
    assert not budget.take(11, time.monotonic() + 60)
    assert budget.take(8, soon)
    assert not budget.take(3, soon)
    later = threading.Timer(0.05, budget.give, (8,))
    later.start()
    assert budget.take(10, time.monotonic() + 5)
    later.join()


def test_certificates_of_a_directory_are_used_as_they_change(tmp_path: Path) -> None:
    """As a kubelet mounts a Secret: a link to a link to a directory that is replaced as a whole."""

    def put(name: str, state: State) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / tls.CERTIFICATE).write_bytes(pair(state).certificate)
        (tmp_path / name / tls.KEY).write_bytes(pair(state).key)
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    one, other = fresh(), fresh()
    put("..1", one)
    for name in (tls.CERTIFICATE, tls.KEY):
        (tmp_path / name).symlink_to(f"..data/{name}")
    used: list[Pair] = []
    changed = threading.Condition()

    def use(found: Pair) -> None:
        with changed:
            used.append(found)
            changed.notify_all()

    directory = tls.Directory(tmp_path, use)
    thread = threading.Thread(target=directory.run)
    thread.start()
    try:
        with changed:
            assert changed.wait_for(lambda: used == [pair(one)], 10)
        put("..2", other)
        with changed:
            assert changed.wait_for(lambda: used == [pair(one), pair(other)], 10)
    finally:
        directory.stop()
        thread.join()
