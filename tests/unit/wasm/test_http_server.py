"""A component that exports wasi:http/incoming-handler, served: what its clients see."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engines.wasm.guest.http.exchange import Limits
from engines.wasm.guest.http.serving import ReadyServer
from engines.wasm.guest.loading import LoadedComponent
from engines.wasm.guest.plan import GuestPlan
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from hack.lab.http_guest import guest
from hack.lab.tls import certificate, tls_answer
from tests.unit.wasm.guests import Guests

LIMITS = Limits(answer=1.0, head=1.0, idle=2.0, silence=1.0, linger=0.5, lost=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A server in a process of its own."""

    pid: int
    port: int
    errors: Path
    status: int | None = None

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, data: bytes) -> bytes:
        """One connection; what comes until its end."""
        with self.connect() as connection:
            connection.sendall(data)
            return drained(connection)

    def get(self, path: str, more: bytes = b"") -> bytes:
        return self.ask(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n" % (path.encode(), more))

    def ended(self) -> bool:
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float = 10.0) -> int:
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def log(self) -> str:
        return self.errors.read_text(errors="replace")

    def sockets(self) -> int:
        links = [os.readlink(each) for each in Path(f"/proc/{self.pid}/fd").iterdir()]
        return sum(link.startswith("socket:") for link in links)

    def resident(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def drained(connection: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return bytes(data)


def received_until(connection: socket.socket, whole: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not whole(data):
        part = connection.recv(65536)
        assert part, f"the server ended the connection after {data!r}"
        data += part
    return data


def body_of(answer: bytes) -> bytes:
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return rest
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            return body
        body, rest = body + rest[:count], rest[count + 2 :]


@contextlib.contextmanager
def serving(
    loaded: LoadedComponent, limits: Limits = LIMITS, memory_max: int = 0, env: tuple[str, ...] = ()
) -> Iterator[Served]:
    port = free_port()
    plan = GuestPlan(
        argv=("guest",), env=(f"WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:{port}", *env), memory_max=memory_max
    )
    assert loaded.server is not None
    with tempfile.NamedTemporaryFile() as errors:
        pid = os.fork()
        if not pid:
            code = 99
            try:
                os.dup2(errors.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                code = ReadyServer(plan, loaded.server, loaded.variant, limits).run().code
            finally:
                os._exit(code)
        served = Served(pid, port, Path(errors.name))
        try:
            until = time.monotonic() + 10
            while time.monotonic() < until and not served.ended():
                with contextlib.suppress(OSError), served.connect():
                    break
                time.sleep(0.01)
            yield served
        finally:
            if served.status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def loaded(guests: Guests) -> LoadedComponent:
    found = guests.load(guest())
    assert isinstance(found, LoadedComponent)
    return found


@pytest.fixture(scope="module")
def server(loaded: LoadedComponent) -> Iterator[Served]:
    with serving(loaded, memory_max=64 << 20) as served:
        yield served
        assert "error of the server" not in served.log()


def test_a_guest_answers(server: Served) -> None:
    answer = server.get("/h")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body_of(answer) == b"Hello\n"
    assert b"\r\ndate: " in answer


def test_many_requests_on_one_connection_each_see_a_fresh_instance(server: Served) -> None:
    with server.connect() as connection:
        for _ in range(50):
            connection.sendall(b"GET /h HTTP/1.1\r\nHost: a\r\n\r\n")
            data = received_until(connection, lambda data: data.endswith(b"0\r\n\r\n"))
            assert body_of(data) == b"Hello\n"


def test_pipelined_requests_are_answered_in_order(server: Served) -> None:
    first = b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    second = b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n"
    third = b"GET /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = server.ask(first + second + third)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b"abc") < answer.index(b"def") < answer.index(b"Hello")


def test_a_body_of_megabytes_goes_through_and_back(server: Served) -> None:
    sent = os.urandom(1 << 20) * 2
    with server.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(
            b"POST /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(sent)
        )
        sending = pool.submit(connection.sendall, sent)
        assert body_of(drained(connection)) == sent
        sending.result()


def test_a_client_that_reads_slowly_makes_its_guest_wait_and_not_the_memory_grow(loaded: LoadedComponent) -> None:
    with serving(loaded, Limits()) as served, served.connect() as slow:
        served.get("/b")
        before = served.resident()
        slow.sendall(
            b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n" * 15 + b"GET /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        time.sleep(0.5)
        assert served.resident() - before < 4096
        answer = drained(slow)
        assert len(answer) > 8 << 20 and answer.endswith(b"Hello\n\r\n0\r\n\r\n")


def test_a_client_that_stops_reading_loses_its_connection(server: Served) -> None:
    before = server.sockets()
    with server.connect() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n" * 8)
        time.sleep(0.5)
        assert server.sockets() == before + 1
        until = time.monotonic() + 8
        while server.sockets() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert server.sockets() == before


def test_head_has_no_body(server: Served) -> None:
    answer = server.ask(b"HEAD /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"\r\n\r\n")
    assert b"Hello" not in answer


def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(server: Served) -> None:
    answer = server.ask(b"GET /h HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in answer and b"connection: close" in answer
    assert answer.endswith(b"\r\n\r\nHello\n")


def test_a_client_that_waits_for_100_continue_gets_it_when_the_guest_reads(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(
            b"POST /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        came = connection.recv(100)
        assert came.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"ok")
        assert body_of((came + drained(connection)).split(b"\r\n\r\n", 1)[1]) == b"ok"


def test_a_guest_that_does_not_read_is_not_continued_and_the_connection_ends(server: Served) -> None:
    answer = server.ask(b"POST /h HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert b"100 Continue" not in answer
    assert b"connection: close" in answer and body_of(answer) == b"Hello\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET  /h HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", b"400"),
        (b"GET /h HTTP/2.0\r\nHost: a\r\n\r\n", b"505"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
        (b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", b"400"),
        (b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"GET /h HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70000 + b"\r\n\r\n", b"431"),
        (b"GET /h HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 300 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request_is_refused(server: Served, request_: bytes, status: bytes) -> None:
    answer = server.ask(request_ + b"GET /h HTTP/1.1\r\nHost: smuggled\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1 and b"Hello" not in answer


def test_a_chunk_that_is_none_ends_the_request_and_the_connection(server: Served) -> None:
    answer = server.ask(b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_trap_is_500_and_in_the_log_with_where_it_was(server: Served) -> None:
    assert server.get("/t").startswith(b"HTTP/1.1 500 ")
    log = server.log()
    assert "GET /t: " in log and "wasm backtrace" in log and "unreachable" in log


def test_a_trap_within_an_answer_is_seen_as_a_broken_answer(server: Served) -> None:
    answer = server.get("/p")
    assert answer.startswith(b"HTTP/1.1 200 OK") and not answer.endswith(b"0\r\n\r\n")


def test_a_guest_without_an_answer_is_500(server: Served) -> None:
    assert server.get("/n").startswith(b"HTTP/1.1 500 ")
    assert "without an answer" in server.log()


def test_an_unfinished_body_is_seen_as_one(server: Served) -> None:
    assert not server.get("/d").endswith(b"0\r\n\r\n")


def test_a_body_shorter_than_said_is_seen_as_one(server: Served) -> None:
    answer = server.ask(b"GET /l HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"content-length: 9" in answer and answer.endswith(b"Hello\n")


def test_a_guest_gets_no_more_memory_than_its_limit(server: Served) -> None:
    assert body_of(server.get("/m")) == b"Hello\n"


def test_a_guest_that_waits_for_too_long_is_504(server: Served) -> None:
    began = time.monotonic()
    assert server.get("/W").startswith(b"HTTP/1.1 504 ")
    assert time.monotonic() - began < 3
    assert "took too long" in server.log()


def test_a_request_that_begins_behind_a_slow_one_has_its_time(loaded: LoadedComponent) -> None:
    limits = replace(LIMITS, answer=60.0, head=0.9)
    with serving(loaded, limits) as server, server.connect() as connection:
        connection.sendall(b"GET /h HTTP/1.1\r\nHost: a\r\n\r\nGET /w HTTP/1.1\r\nHost: a\r\n\r\nGET /h")
        received_until(connection, lambda data: data.count(b"\r\n0\r\n\r\n") == 2)
        time.sleep(0.2)
        connection.sendall(b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert body_of(drained(connection)) == b"Hello\n"


def test_half_a_head_is_408_and_an_idle_connection_ends(server: Served) -> None:
    with server.connect() as half, server.connect() as idle:
        half.sendall(b"GET /h HTT")
        assert drained(half).startswith(b"HTTP/1.1 408 ")
        assert drained(idle) == b""


def test_hundreds_of_clients_at_once_are_all_served(server: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(300)]
        for client in clients:
            client.sendall(b"GET /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert all(body_of(drained(client)) == b"Hello\n" for client in clients)


def test_guests_that_wait_do_not_hold_up_others(server: Served) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(10)]
        for client in waiting:
            client.sendall(b"GET /W HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        began = time.monotonic()
        assert body_of(server.get("/h")) == b"Hello\n"
        assert time.monotonic() - began < 0.9


def test_a_line_on_stdout_is_in_the_log(server: Served) -> None:
    server.get("/o")
    assert "Hello\n" in server.log()


def test_guests_that_spin_are_504_and_too_many_of_them_end_the_container(loaded: LoadedComponent) -> None:
    with serving(loaded) as served:
        with served.connect() as one:
            one.sendall(b"GET /s HTTP/1.1\r\nHost: a\r\n\r\n")
            assert drained(one).startswith(b"HTTP/1.1 504 ")
        assert body_of(served.get("/h")) == b"Hello\n"
        with served.connect() as one, served.connect() as other:
            one.sendall(b"GET /s HTTP/1.1\r\nHost: a\r\n\r\n")
            other.sendall(b"GET /S HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"Hello" in drained(other)
            assert served.wait() == 134
        assert "HTTPRequestsStuck" in served.log()


def test_a_stop_lets_requests_under_way_finish_and_exits_with_0(loaded: LoadedComponent) -> None:
    with serving(loaded, Limits()) as served, served.connect() as idle, served.connect() as busy:
        busy.sendall(b"GET /w HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        os.kill(served.pid, signal.SIGTERM)
        assert drained(idle) == b""
        with pytest.raises(OSError):
            served.connect().close()
        answer = drained(busy)
        assert body_of(answer) == b"Hello\n" and b"connection: close" in answer
        assert served.wait() == 0


def test_a_second_stop_does_not_wait(loaded: LoadedComponent) -> None:
    with serving(loaded, Limits()) as served, served.connect() as busy:
        busy.sendall(b"GET /W HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        os.kill(served.pid, signal.SIGTERM)
        time.sleep(0.1)
        os.kill(served.pid, signal.SIGTERM)
        assert served.wait() == 128 + signal.SIGTERM


def test_memory_does_not_grow_with_requests(loaded: LoadedComponent) -> None:
    with serving(loaded) as served, served.connect() as connection:

        def ask(count: int) -> None:
            for _ in range(count):
                connection.sendall(b"GET /h HTTP/1.1\r\nHost: a\r\n\r\n")
                received_until(connection, lambda data: data.endswith(b"0\r\n\r\n"))

        ask(500)
        before = served.resident()
        ask(2000)
        assert served.resident() - before < 1024


def test_a_guest_whose_memory_is_beyond_its_limit_does_not_start(loaded: LoadedComponent) -> None:
    with serving(loaded, memory_max=65536) as served:
        assert served.wait() == 1
        assert "WasmCannotStart" in served.log()


def test_an_address_that_is_none_or_taken_is_refused(loaded: LoadedComponent) -> None:
    assert loaded.server is not None
    plan = GuestPlan(argv=("guest",), env=("WASMTIME_HTTP_PROXY_SOCKET_ADDR=localhost:http",))
    with pytest.raises(InvalidInput, match="no ADDRESS:PORT"):
        ReadyServer(plan, loaded.server, loaded.variant)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plan = GuestPlan(argv=("guest",), env=(f"WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:{taken.getsockname()[1]}",))
        with pytest.raises(FailedPrecondition, match="Address already in use"):
            ReadyServer(plan, loaded.server, loaded.variant)


def test_a_guest_passes_on_what_another_server_says(server: Served, loaded: LoadedComponent) -> None:
    with serving(loaded) as other:
        assert body_of(server.get(f"/f127.0.0.1:{other.port}")) == b"Hello\n"
        assert body_of(server.get(f"/flocalhost:{other.port}")) == b"Hello\n"


def test_a_guest_learns_why_its_request_failed(server: Served) -> None:
    # The discriminants of connection-refused and DNS-error.
    assert body_of(server.get(f"/f127.0.0.1:{free_port()}")) == bytes((6,))
    assert body_of(server.get("/fa..b:80")) == bytes((1,))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nHello\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nHe\r\n4;x=y\r\nllo\n\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nHello\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nHello\n",
    ],
)
def test_every_way_to_end_a_response_is_understood(server: Served, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, server.connect() as client:
        client.sendall(
            b"GET /f127.0.0.1:%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % listener.getsockname()[1]
        )
        accepted, _ = listener.accept()
        with accepted:
            asked = accepted.recv(4096)
            assert asked.startswith(b"GET /h HTTP/1.1\r\nhost: 127.0.0.1:")
            # In pieces, so that none of them is seen as a whole.
            for at in range(0, len(answer), 7):
                accepted.sendall(answer[at : at + 7])
                time.sleep(0.002)
        assert body_of(drained(client)) == b"Hello\n"


def test_a_server_that_only_ever_says_that_it_is_about_to_answer_is_given_up(server: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, server.connect() as client:
        client.sendall(
            b"GET /f127.0.0.1:%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % listener.getsockname()[1]
        )
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(b"HTTP/1.1 100 \r\n\r\n" * 3000)
            # The discriminant of HTTP-protocol-error.
            assert body_of(drained(client)) == bytes((35,))


def test_a_guest_that_reads_for_long_before_it_answers_has_its_time_from_the_last_byte_on(server: Served) -> None:
    with server.connect() as client:
        client.sendall(b"POST /r HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            time.sleep(0.3)
            client.sendall(b"x")
        assert body_of(drained(client)) == b"Hello\n"


def test_an_endless_body_that_nobody_reads_is_not_read_for_ever(server: Served) -> None:
    with server.connect() as client:
        client.sendall(b"POST /h HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 8:
                client.sendall(bytes(65536))
        assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("trusted", "host", "told"),
    [(True, "localhost", None), (True, "127.0.0.1", 13), (False, "localhost", 13)],
)
def test_a_guest_asks_by_tls_whom_it_trusts_and_nobody_else(
    loaded: LoadedComponent, tmp_path: Path, trusted: bool, host: str, told: int | None
) -> None:
    paths = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    body = bytes(range(256)) * 300
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    env = (f"SSL_CERT_FILE={paths[0]}",) if trusted else ()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(tls_answer, listener, context, answer)
        with serving(loaded, env=env) as served:
            got = body_of(served.get(f"/F{host}:{listener.getsockname()[1]}"))
        # TLS-certificate-error is the thirteenth of the error codes.
        assert got == (body if told is None else bytes((told,)))
        answering.result(timeout=10)


def test_another_signal_ends_it_at_once(loaded: LoadedComponent) -> None:
    with serving(loaded) as served:
        os.kill(served.pid, signal.SIGUSR1)
        assert served.wait() == 128 + signal.SIGUSR1
