"""``forge run``: a package's file, a WebAssembly image, streams, volumes, and no forgeoned at all."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cli import client
from forgeone_shim.package import file, manifest, project
from hack.lab import guests
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.conftest import running_daemon

pytestmark = pytest.mark.root

KEY = SigningKey.generate()
Forge = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    folder.chmod(0o755)
    (folder / "it.pub").write_bytes(KEY.public.pem())
    return folder


@pytest.fixture(scope="module")
def node(registry: Registry, keys: Path) -> Iterator[Daemon]:
    with running_daemon(registry, {"packages.trusted_keys": str(keys)}) as daemon:
        yield daemon


def argv(daemon: Daemon, *words: str, named: bool = True) -> list[str]:
    where = ["--socket", daemon.socket] if named else []
    logs = ["--log-dir", str(daemon.directory / "logs")]
    return [sys.executable, "-m", "forgeone_shim.cli.main", *where, "run", *logs, *words]


@pytest.fixture
def run(node: Daemon) -> Iterator[Forge]:
    def call(*words: str, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(argv(node, *words), check=False, capture_output=True, timeout=120, input=stdin)
        assert done.returncode == code, done.stderr.decode()
        return done

    before = node.left()
    yield call
    assert node.left(expected=before) == before


def packed(tmp_path: Path, *steps: guests.Step, key: SigningKey | None = KEY, **over: object) -> str:
    (tmp_path / "it.wasm").write_bytes(guests.guest(*steps))
    (tmp_path / "assets/etc").mkdir(parents=True, exist_ok=True)
    (tmp_path / "assets/etc/it.conf").write_text("level = 3\n")
    fields = {"name": "acme/logger", "version": "1.0.0", "module": tmp_path / "it.wasm", "assets": tmp_path / "assets"}
    made = project.Project(**{**fields, **over})  # type: ignore[arg-type]
    return str(file.build(made, tmp_path / "logger-1.0.0.forgepkg", key).path)


def test_a_package_s_file_runs_with_what_it_says_of_itself(run: Forge, tmp_path: Path) -> None:
    package = packed(
        tmp_path,
        guests.arguments(),
        guests.environment(),
        guests.cat("/etc/it.conf"),
        guests.say("oops\n", fd=2),
        guests.exit_with(7),
        run=manifest.Run(args=("-v",), env={"LEVEL": "3"}),
    )
    done = run("--rm", "-e", "MORE=1", package, code=7)
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["logger", "-v"]
    assert {"LEVEL=3", "MORE=1"} <= set(lines)
    assert lines[-1] == "level = 3"
    assert done.stderr == b"oops\n"
    assert run("--rm", package, "--", "other", code=7).stdout.decode().splitlines()[:2] == ["logger", "other"]


def test_a_package_nobody_trusted_signed_does_not_run(run: Forge, tmp_path: Path) -> None:
    package = packed(tmp_path, guests.say("never\n"), key=SigningKey.generate())
    done = run("--rm", package, code=125)
    assert b"SignatureValidationFailed" in done.stderr
    assert done.stdout == b""


def test_a_package_s_memory_limit_is_its_container_s(run: Forge, tmp_path: Path) -> None:
    limited = packed(tmp_path, guests.take(48), guests.say("grown\n"), limits=manifest.Limits(memory=32 << 20))
    run("--rm", limited, code=99)
    assert run("--rm", "-m", "128Mi", limited).stdout == b"grown\n"


def test_standard_input_reaches_a_guest_and_a_program_alike(run: Forge, tmp_path: Path, busybox: str) -> None:
    package = packed(tmp_path, guests.say("begin\n"), guests.echo())
    assert run("--rm", "-i", package, stdin=b"one\ntwo\n").stdout == b"begin\none\ntwo\n"
    done = run("--rm", "-q", "-i", busybox, "--", "sh", "-c", "echo begin; cat; exit 3", stdin=b"x" * 300_000, code=3)
    assert done.stdout == b"begin\n" + b"x" * 300_000


def test_nothing_of_a_terminal_s_first_output_is_missed(run: Forge, tmp_path: Path, busybox: str) -> None:
    assert run("--rm", "-t", packed(tmp_path, guests.say("first\n"))).stdout == b"first\r\n"
    done = run("--rm", "-q", "-t", busybox, "--", "sh", "-c", "echo first; tty; exit 4", code=4)
    assert done.stdout == b"first\r\n/dev/pts/0\r\n"


def test_a_shell_in_a_terminal(node: Daemon, busybox: str) -> None:
    outer, inner = pty.openpty()
    with subprocess.Popen(
        argv(node, "--rm", "-q", "-it", busybox, "--", "sh"), stdin=inner, stdout=inner, stderr=inner
    ) as it:
        os.close(inner)
        # Ctrl-p ctrl-q would let go of a container that somebody else removes.
        os.write(outer, b"\x10\x11echo $((40 + 2)); exit 5\n")
        seen = b""
        while b"42\r\n" not in seen:
            seen += os.read(outer, 4096)
        assert it.wait(30) == 5
        os.close(outer)


def test_a_volume_is_the_host_s_directory_and_read_only_where_it_is_said_so(
    run: Forge, tmp_path: Path, busybox: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/in").write_text("from the host\n")
    package = packed(tmp_path, guests.cat("/data/in"), guests.put("/data/out", "from the guest"))
    assert run("--rm", "-v", f"{tmp_path}/data:/data", package).stdout == b"from the host\n"
    assert (tmp_path / "data/out").read_text() == "from the guest"
    # 29 is WASI's EIO, which stands for EROFS with wasmtime.
    assert run("--rm", "-v", f"{tmp_path}/data:/data:ro", package, code=100 + 29).stdout == b"from the host\n"
    script = "cat /data/in; touch /data/x"
    done = run("--rm", "-q", "-v", f"{tmp_path}/data:/data:ro", busybox, "--", "sh", "-c", script, code=1)
    assert done.stdout == b"from the host\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-v", "/nonexistent:/x", "a"], "does not exist"),
        (["-v", "/tmp", "a"], "is not PATH"),
        (["-d", "-i", "a"], "no meaning with -i"),
        (["-m", "much", "a"], "--memory"),
        (["--engine", "wasm", "--handler", "x", "a"], "no meaning with --handler"),
        (["./absent.forgepkg"], "absent.forgepkg"),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_line(node: Daemon, busybox: str, words: list[str], says: str) -> None:
    words = [busybox if word == "a" else word for word in words]
    done = subprocess.run(argv(node, "-q", *words), check=False, capture_output=True, timeout=60)
    assert (done.returncode, says in done.stderr.decode()) == (125, True), done.stderr


def test_without_a_forgeoned_one_is_started_for_the_call_and_leaves_nothing(
    daemon_factory: Callable[..., Daemon], keys: Path, tmp_path: Path
) -> None:
    if not client.unreachable(client.DEFAULT_SOCKET):
        pytest.skip("this host has a forgeoned")
    daemon = daemon_factory({"packages.trusted_keys": str(keys)})
    daemon.stop()
    package = packed(tmp_path, guests.say("here\n"), guests.exit_with(3))
    words = argv(daemon, "--config", str(daemon.config_file), package, named=False)
    environ = {key: value for key, value in os.environ.items() if key != "FORGEONE_SOCKET"}
    done = subprocess.run(words, check=False, capture_output=True, timeout=120, env=environ)
    assert (done.returncode, done.stdout) == (3, b"here\n"), done.stderr
    listening = subprocess.run(["pgrep", "-f", f"cri.daemon.*{daemon.config_file}"], capture_output=True, check=False)
    assert listening.stdout == b""
    assert list((daemon.directory / "logs").iterdir()) == []
    refused = subprocess.run([*words[:-1], "-d", package], check=False, capture_output=True, timeout=120, env=environ)
    assert (refused.returncode, b"--detach" in refused.stderr) == (125, True)


def test_an_interrupt_ends_what_a_forgeoned_of_the_call_runs(
    daemon_factory: Callable[..., Daemon], keys: Path, tmp_path: Path
) -> None:
    if not client.unreachable(client.DEFAULT_SOCKET):
        pytest.skip("this host has a forgeoned")
    daemon = daemon_factory({"packages.trusted_keys": str(keys)})
    daemon.stop()
    package = packed(tmp_path, guests.say("up\n"), guests.sleep(1000))
    words = argv(daemon, "--stop-timeout", "1", "--config", str(daemon.config_file), package, named=False)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None
        assert re.match(rb"up\n", running.stdout.readline())
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(60) == 130


def test_a_forgeoned_of_the_call_imports_nothing_from_where_it_was_called_and_ends_with_its_caller(
    daemon_factory: Callable[..., Daemon], keys: Path, tmp_path: Path
) -> None:
    if not client.unreachable(client.DEFAULT_SOCKET):
        pytest.skip("this host has a forgeoned")
    daemon = daemon_factory({"packages.trusted_keys": str(keys)})
    daemon.stop()
    (tmp_path / "structlog.py").write_text("raise SystemExit('anybody may have written this')\n")
    package = packed(tmp_path, guests.say("up\n"), guests.sleep(1000))
    python, *words = argv(daemon, "--config", str(daemon.config_file), package, named=False)
    # Who is killed leaves its directory; below pytest's own a socket's path would be too long.
    with tempfile.TemporaryDirectory() as left:
        environment = {**os.environ, "TMPDIR": left}
        with subprocess.Popen([python, "-P", *words], stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"up\n"
            running.kill()
    # It waits for its predecessor to let go, and knows what that has left.
    daemon.start()
    assert [pod.state for pod in daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items] == [pb.SANDBOX_READY]
