"""The fork server's life: started when needed, found again, ended; what it makes is tested end to end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, InvalidInput
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import forks, messages, wire
from forgeone_shim.shim.client import socket_name
from forgeone_shim.shim.forks import Server
from forgeone_shim.shim.messages import Extent, Failed, MakeNamespaces
from forgeone_shim.shim.namespaces import PROGRAM, NamespaceServer, StepFailed
from forgeone_shim.shim.server import handle

# Refused to anybody: a user namespace takes at most 340 extents, and these overlap besides.
_REFUSED = MakeNamespaces(
    uids=(Extent(0, 0, 2), Extent(0, 0, 2)), gids=(Extent(0, 0, 1),), kinds=(), hostname="", sysctls=()
)


def _ask(server: NamespaceServer) -> None:
    with pytest.raises(StepFailed, match=r"map ids|unshare the user namespace"):
        server.make_namespaces(_REFUSED, Deadline.after(20))


def _pid(server: NamespaceServer) -> int:
    assert server._child is not None
    return server._child.pid


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NamespaceServer]:
    made = NamespaceServer(tmp_path / "shim")
    yield made
    made.close()


def test_nothing_is_started_or_made_before_it_is_needed(tmp_path: Path) -> None:
    server = NamespaceServer(tmp_path / "shim")
    server.close()
    assert not (tmp_path / "shim").exists()


def test_a_request_that_is_too_long_is_its_callers_fault(server: NamespaceServer) -> None:
    sysctls = tuple((f"/proc/sys/net/{number}", "x" * 4096) for number in range(17))
    with pytest.raises(InvalidInput, match="sysctls"):
        server.make_namespaces(
            MakeNamespaces(uids=(), gids=(), kinds=("net",), hostname="", sysctls=sysctls), Deadline.after(20)
        )
    assert server._child is None


def test_it_is_not_given_what_the_daemon_was(server: NamespaceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy")
    monkeypatch.setenv("SSL_CERT_FILE", "/trusted.pem")
    _ask(server)
    environment = Path(f"/proc/{_pid(server)}/environ").read_bytes().split(b"\0")
    assert b"SSL_CERT_FILE=/trusted.pem" in environment
    assert not [one for one in environment if b"password" in one]


def test_one_server_answers_many_requests_and_says_which_step_failed(server: NamespaceServer) -> None:
    _ask(server)
    first = _pid(server)
    _ask(server)
    assert _pid(server) == first


def test_it_ends_when_it_is_told_to(server: NamespaceServer) -> None:
    _ask(server)
    with Pidfd(_pid(server)) as held:
        server.close()
        assert held.wait(5)
    assert not (server._directory / socket_name(PROGRAM)).exists()


def test_one_that_died_is_started_anew(server: NamespaceServer) -> None:
    _ask(server)
    first = _pid(server)
    with Pidfd(first) as held:
        held.send(signal.SIGKILL)
        assert held.wait(5)
    _ask(server)
    assert _pid(server) != first


def test_a_second_daemon_finds_the_server_of_the_first(server: NamespaceServer) -> None:
    _ask(server)
    second = NamespaceServer(server._directory)
    _ask(second)
    assert second._child is None
    assert second._lease is not None
    second._let_go()


def test_requests_of_many_threads_start_one_server(server: NamespaceServer) -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            _ask(server)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(_servers(server)) == 1


def _servers(server: NamespaceServer) -> list[int]:
    """Children of this process; what a server forks is none."""
    found = []
    for entry in Path("/proc").iterdir():
        seen = procs.stat(int(entry.name)) if entry.name.isdigit() else None
        if seen is not None and seen.parent == os.getpid() and str(server._directory) in _command(entry):
            found.append(int(entry.name))
    return found


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / socket_name(PROGRAM)))
        listener.listen()
        client = NamespaceServer(tmp_path)
        with pytest.raises(DeadlineExceeded):
            client.make_namespaces(_REFUSED, Deadline.after(0.1))
        client._let_go()


def test_an_answer_that_is_none_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / socket_name(PROGRAM)))
        listener.listen()
        client = NamespaceServer(tmp_path)
        answered = threading.Thread(target=_answer, args=(listener, b'i{"kind":"made","kinds":["user"]}'))
        answered.start()
        with pytest.raises(InternalError, match="cannot be read"):
            client.make_namespaces(_REFUSED, Deadline.after(5))
        answered.join()
        client._let_go()


def _answer(listener: socket.socket, data: bytes) -> None:
    """The first connection is the lease."""
    lease, _ = listener.accept()
    connection, _ = listener.accept()
    with lease, connection:
        connection.recv(1 << 16)
        connection.send(data)


class _Here:
    """A server on a thread of this process, which must not fork here."""

    def __init__(self, directory: Path, idle: float) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.address = str(directory / "socket")
        listener.bind(self.address)
        listener.listen()
        self.thread = threading.Thread(target=Server(listener, handle).run, args=(idle,))
        self.thread.start()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.address)
        connection.settimeout(5)
        return connection


def test_it_ends_by_itself_when_nobody_has_been_connected_for_a_while(tmp_path: Path) -> None:
    here = _Here(tmp_path, idle=0.1)
    with here.connect():
        here.thread.join(0.4)
        assert here.thread.is_alive()
    here.thread.join(5)
    assert not here.thread.is_alive()


def test_noise_is_answered_with_the_end_of_the_connection_and_does_no_harm(tmp_path: Path) -> None:
    here = _Here(tmp_path, idle=30)
    for noise in (b"x", b"{}", b'i{"kind":"finish","now":true}', b"f", b"x" + os.urandom(2000)):
        with here.connect() as connection:
            connection.send(noise)
            assert connection.recv(100) == b""
    with here.connect() as connection:
        wire.send_finish(connection)
        assert wire.receive(connection).finish
    here.thread.join(5)
    assert not here.thread.is_alive()


def test_a_fork_that_the_kernel_refuses_is_answered_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(forks.os, "fork", refuse)
    here = _Here(tmp_path, idle=30)
    with here.connect() as first:
        wire.send(first, messages.encode(_REFUSED))
        wire.receive(first)
        before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with here.connect() as connection:
            wire.send(connection, messages.encode(_REFUSED))
            answer = wire.receive(connection)
            assert messages.decode_answer(bytes(answer.data), ()) == Failed(step="fork", errno=errno.EAGAIN)
    assert len(os.listdir("/proc/self/fd")) <= before
    with here.connect() as connection:
        wire.send_finish(connection)
        wire.receive(connection)
    here.thread.join(5)
    assert not here.thread.is_alive()


def test_nobody_else_can_ask(server: NamespaceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(server)
    assert server._directory.stat().st_mode & 0o777 == 0o700
    assert (server._directory / socket_name(PROGRAM)).stat().st_mode & 0o777 == 0o600
    # Whoever got at the socket all the same.
    monkeypatch.setattr(forks, "_peer", lambda _: os.geteuid() + 1)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger,
    ):
        listener.bind(str(tmp_path / "other"))
        listener.listen()
        serving = threading.Thread(target=Server(listener.dup(), handle).run, args=(0.2,))
        serving.start()
        stranger.settimeout(10)
        stranger.connect(str(tmp_path / "other"))
        assert not stranger.recv(1), "the connection ends unheard"
        serving.join(10)
        assert not serving.is_alive()
