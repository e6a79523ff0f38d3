"""``forge exec``, ``attach`` and ``port-forward`` with real terminals, containers and connections."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cri.api import runtime_pb2 as pb
from forgeone_shim.config.loader import to_toml
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod
from tests.e2e.streams import eventually

pytestmark = pytest.mark.root


def argv(daemon: Daemon, *words: str) -> list[str]:
    return [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, *words]


def forge(daemon: Daemon, *words: str, text: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(argv(daemon, *words), input=text, check=False, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def pod(forgeoned: Daemon, nothing_left: None, busybox: str) -> Iterator[Pod]:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    made = Pod.plan(forgeoned).run()
    yield made
    with contextlib.suppress(Exception):
        made.remove()


@pytest.fixture
def sleeper(pod: Pod, busybox: str) -> str:
    return pod.start(pod.container(busybox))


class Terminal:
    """A command on a terminal of its own, as a person at a keyboard has it."""

    def __init__(self, words: list[str], columns: int = 80, rows: int = 24) -> None:
        self.fd, side = pty.openpty()
        self.resize(columns, rows, tell=False)
        self.before = termios.tcgetattr(side)
        self.process = subprocess.Popen(words, stdin=side, stdout=side, stderr=side, start_new_session=True)
        self.side = side
        self.seen = b""

    def resize(self, columns: int, rows: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            # The kernel tells the terminal's own session; this one has not been made the controlling terminal.
            self.process.send_signal(signal.SIGWINCH)

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def until(self, text: bytes, seconds: float = 20) -> None:
        limit = time.monotonic() + seconds
        while text not in self.seen:
            ready = select.select([self.fd], [], [], max(0.0, limit - time.monotonic()))[0]
            assert ready, f"{text!r} is not in {self.seen!r}"
            self.seen += os.read(self.fd, 65536)
        self.seen = self.seen.partition(text)[2]

    def raw(self) -> bool:
        return not termios.tcgetattr(self.side)[3] & termios.ICANON

    def wait(self) -> int:
        code = self.process.wait(30)
        assert termios.tcgetattr(self.side) == self.before, "the terminal is as it was"
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.side)
        os.close(self.fd)


@contextlib.contextmanager
def started(words: list[str], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(words, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def terminal(daemon: Daemon, *words: str) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(argv(daemon, *words))) as made:
        yield made


def running(pod: Pod, id_: str, name: str) -> bool:
    return name in pod.exec(id_, "ps", "-o", "args").stdout.decode()


# -- exec


def test_exec_passes_streams_and_the_exit_code(forgeoned: Daemon, sleeper: str) -> None:
    done = forge(forgeoned, "exec", sleeper, "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_exec_passes_input_and_its_end(forgeoned: Daemon, sleeper: str) -> None:
    text = os.urandom(3 << 20)
    assert forge(forgeoned, "exec", "-i", sleeper, "--", "cat", text=text).stdout == text
    assert forge(forgeoned, "exec", sleeper, "--", "cat", text=b"not for it").stdout == b""


def test_exec_has_no_limit_of_output(forgeoned: Daemon, sleeper: str) -> None:
    done = forge(forgeoned, "exec", sleeper, "--", "head", "-c", "20000000", "/dev/zero")
    assert len(done.stdout) == 20_000_000


def test_a_command_that_is_not_there_is_not_its_exit_code(forgeoned: Daemon, sleeper: str) -> None:
    assert b"executable file `nope` not found" in forge(forgeoned, "exec", sleeper, "--", "nope", code=125).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_exec_ends_its_command(
    forgeoned: Daemon, pod: Pod, sleeper: str, number: signal.Signals, code: int
) -> None:
    words = argv(forgeoned, "exec", sleeper, "--", "sh", "-c", "echo up; exec sleep 4321")
    with started(words, stdout=subprocess.PIPE) as running_:
        assert running_.stdout is not None
        assert running_.stdout.readline() == b"up\n"
        assert running(pod, sleeper, "sleep 4321")
        running_.send_signal(number)
        assert running_.wait(30) == code
    eventually(lambda: not running(pod, sleeper, "sleep 4321"))


def test_an_exec_that_lasts_too_long_is_ended(forgeoned: Daemon, pod: Pod, sleeper: str) -> None:
    done = forge(forgeoned, "exec", "--timeout", "1", sleeper, "--", "sh", "-c", "echo up; exec sleep 4322", code=125)
    assert done.stdout == b"up\n"
    assert b"still running after 1 s" in done.stderr
    eventually(lambda: not running(pod, sleeper, "sleep 4322"))


def test_a_reader_that_goes_ends_exec(forgeoned: Daemon, sleeper: str) -> None:
    with started(argv(forgeoned, "exec", sleeper, "--", "yes"), stdout=subprocess.PIPE) as endless:
        assert endless.stdout is not None
        assert endless.stdout.read(2) == b"y\n"
        endless.stdout.close()
        assert endless.wait(30) == 128 + signal.SIGPIPE


def test_a_terminal_is_raw_has_the_local_size_and_follows_it(forgeoned: Daemon, sleeper: str) -> None:
    with terminal(forgeoned, "exec", "-it", sleeper, "--", "sh") as shell:
        shell.until(b"# ")
        assert shell.raw()
        shell.type(b"stty size\r")
        shell.until(b"24 80")
        shell.until(b"# ")
        shell.resize(132, 50)
        shell.type(b"sleep 0.2; stty size\r")
        shell.until(b"50 132")
        shell.until(b"# ")
        shell.type(b"sleep 1000\r")
        shell.until(b"sleep 1000")
        time.sleep(0.3)
        shell.type(b"\x03")
        shell.until(b"# ")
        shell.type(b"exit 9\r")
        assert shell.wait() == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_terminal_is_given_back_whatever_ends_exec(
    forgeoned: Daemon, pod: Pod, sleeper: str, number: signal.Signals
) -> None:
    with terminal(forgeoned, "exec", "-it", sleeper, "--", "sh", "-c", "echo up; exec sleep 4323") as shell:
        shell.until(b"up")
        assert shell.raw()
        shell.process.send_signal(number)
        assert shell.wait() == 128 + number
    eventually(lambda: not running(pod, sleeper, "sleep 4323"))


def test_a_terminal_is_given_back_when_forgeoned_ends(daemon_factory: Callable[[], Daemon], busybox: str) -> None:
    daemon = daemon_factory()
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    made = Pod.plan(daemon).run()
    id_ = made.start(made.container(busybox))
    with terminal(daemon, "exec", "-it", id_, "--", "sh") as shell:
        shell.until(b"# ")
        daemon.kill()
        assert shell.wait() == 125
        shell.until(b"connection")


def test_a_terminal_that_is_not_there_is_an_error(forgeoned: Daemon, sleeper: str) -> None:
    assert b"standard input is not a terminal" in forge(forgeoned, "exec", "-it", sleeper, "--", "sh", code=125).stderr
    assert forge(forgeoned, "exec", "-t", sleeper, "--", "sh", "-c", "test -t 1 && echo yes").stdout == b"yes\r\n"


# -- attach


def interactive(pod: Pod, busybox: str, *command: str, tty: bool) -> str:
    config = pod.container(busybox, *command, name=f"c{os.urandom(3).hex()}")
    config.stdin, config.tty = True, tty
    return pod.start(config)


def test_attach_lets_go_and_comes_back_and_passes_the_exit_code(forgeoned: Daemon, pod: Pod, busybox: str) -> None:
    id_ = interactive(pod, busybox, "sh", tty=True)
    with terminal(forgeoned, "attach", id_) as shell:
        eventually(shell.raw)
        shell.type(b"\rA=kept\r")
        shell.until(b"# ")
        shell.type(b"\x10")
        shell.type(b"\x11")
        shell.until(b"detached from")
        assert shell.wait() == 0
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    with terminal(forgeoned, "attach", id_) as shell:
        eventually(shell.raw)
        shell.until(b"# ")  # drawn anew without a key
        shell.type(b"\r")
        shell.until(b"# ")
        shell.type(b"echo $A-$(stty size)\r")
        shell.until(b"kept-24 80")
        shell.type(b"exit 5\r")
        assert shell.wait() == 5
    assert pod.wait(id_).exit_code == 5


def test_attach_without_a_terminal_passes_input_and_an_interrupt_leaves_the_container(
    forgeoned: Daemon, pod: Pod, busybox: str
) -> None:
    id_ = interactive(pod, busybox, "sh", "-c", "while read line; do echo got $line; done; exit 4", tty=False)
    words = argv(forgeoned, "attach", id_)
    with started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write(b"one\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"got one\n"
        attached.send_signal(signal.SIGINT)
        assert attached.wait(30) == 130
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    with started(
        [*words, "--no-stdin"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watching:
        line = f'"verb":"attach","container_id":"{id_}","event":"session",'
        eventually(lambda: forgeoned.log.read_text().count(line) >= 2)
        pod.stop_container(id_)
        assert watching.stderr is not None
        assert (watching.wait(30), watching.stderr.read()) == (137, b"")


# -- port-forward


@contextlib.contextmanager
def forwarded(daemon: Daemon, *words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The process and what it listens on."""
    command = argv(daemon, "port-forward", *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running_:
        try:
            assert running_.stdout is not None
            lines = [running_.stdout.readline().strip() for _ in range(2 * (len(words) - 1))]
            yield running_, lines
        finally:
            running_.terminate()


def local(line: str) -> tuple[str, int]:
    host, _, port = line.partition(" -> ")[0].rpartition(":")
    return host.strip("[]"), int(port)


def everything(sock: socket.socket) -> bytes:
    sock.settimeout(20)
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


def test_ports_of_the_loopback_lead_to_the_pod(forgeoned: Daemon, pod: Pod, busybox: str) -> None:
    # It answers with what it got only once its input has ended.
    server = "nc -ll -p 8080 -e sh -c 'cat > /tmp/$$; cat /tmp/$$; rm /tmp/$$' & nc -ll -p 8081 -e echo hello & wait"
    id_ = pod.start(pod.container(busybox, "sh", "-c", server))
    eventually(lambda: pod.exec(id_, "netstat", "-tln").stdout.count(b":808") >= 2)
    text = os.urandom(2 << 20)
    with forwarded(forgeoned, pod.id, ":8080", ":8081") as (_, lines):
        assert [line.partition(" -> ")[2] for line in lines] == ["8080", "8080", "8081", "8081"]
        assert {local(line)[0] for line in lines} == {"127.0.0.1", "::1"}
        assert local(lines[0])[1] == local(lines[1])[1]
        both = [socket.create_connection(local(line), 20) for line in lines[:2]]
        for sock in both:
            with socket.create_connection(local(lines[2]), 20) as other:
                assert everything(other) == b"hello\n", "one that waits holds up no other"
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
        for sock in both:
            with sock:
                assert everything(sock) == text


def test_a_port_that_nobody_listens_on_resets_the_connection_and_is_told(
    forgeoned: Daemon, pod: Pod, sleeper: str
) -> None:
    with forwarded(forgeoned, pod.id, ":9") as (running_, lines):
        for _ in range(2):
            with socket.create_connection(local(lines[0]), 20) as sock, pytest.raises(ConnectionResetError):
                sock.settimeout(20)
                sock.recv(1)
            assert running_.stderr is not None
            assert "localhost:9 cannot be reached in the pod" in running_.stderr.readline()


def test_a_pod_that_has_gone_ends_port_forward(forgeoned: Daemon, pod: Pod, sleeper: str) -> None:
    with forwarded(forgeoned, pod.id, ":80") as (running_, lines):
        pod.remove()
        with contextlib.suppress(OSError), socket.create_connection(local(lines[0]), 20) as sock:
            sock.settimeout(20)
            sock.recv(1)
        assert running_.wait(30) == 1
        assert running_.stderr is not None
        assert "NOT_FOUND" in running_.stderr.read()


def test_connections_outlive_a_restart_of_forgeoned_as_a_whole(
    daemon_factory: Callable[[], Daemon], busybox: str
) -> None:
    daemon = daemon_factory()
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    made = Pod.plan(daemon).run()
    made.start(made.container(busybox, "nc", "-ll", "-p", "80", "-e", "echo", "hello"))
    with forwarded(daemon, made.id, ":80") as (_, lines):
        for _ in range(2):

            def answered() -> bool:
                with contextlib.suppress(OSError), socket.create_connection(local(lines[0]), 20) as sock:
                    return everything(sock) == b"hello\n"
                return False

            eventually(answered)
            daemon.restart()


def test_a_port_that_is_taken_is_said_and_nothing_is_listened_on(forgeoned: Daemon, pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = forge(forgeoned, "port-forward", pod.id, f"{taken.getsockname()[1]}:80", code=1)
    assert b"cannot be listened on: Address already in use" in done.stderr
    assert b"'x:80' is not" in forge(forgeoned, "port-forward", pod.id, "x:80", code=2).stderr


# -- TLS


def pem(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
    )
    signed = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))


def test_all_of_it_goes_by_tls_where_that_is_configured(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    certificate = daemon.directory / "tls.pem"
    pem(certificate)
    streaming = replace(daemon.config.streaming, tls_cert_file=str(certificate))
    daemon.config_file.write_text(to_toml(replace(daemon.config, streaming=streaming)))
    daemon.restart()
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    made = Pod.plan(daemon).run()
    id_ = made.start(made.container(busybox, "nc", "-ll", "-p", "80", "-e", "echo", "hello"))
    text = os.urandom(1 << 20)
    assert forge(daemon, "exec", "-i", id_, "--", "cat", text=text).stdout == text
    with forwarded(daemon, made.id, ":80") as (_, lines), socket.create_connection(local(lines[0]), 20) as sock:
        assert everything(sock) == b"hello\n"
