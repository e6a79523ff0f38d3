"""The ``forge`` command against a real forgeoned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hack.lab import images
from hack.lab.daemon import Daemon
from tests.e2e.conftest import Push

pytestmark = pytest.mark.root

Forge = Callable[..., subprocess.CompletedProcess[str]]


def argv(daemon: Daemon, *words: str) -> list[str]:
    verb, *rest = words
    logs = ["--log-dir", str(daemon.directory / "logs")] if verb == "run" else []
    return [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, verb, *logs, *rest]


@pytest.fixture
def forge(forgeoned: Daemon, nothing_left: None) -> Forge:
    def call(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv(forgeoned, *words), check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    return call


def test_run_shows_both_streams_and_passes_the_exit_code_on(forge: Forge, busybox: str) -> None:
    done = forge(
        "run", "--rm", "-e", "WHO=forge", busybox, "--", "sh", "-c", "echo $WHO; echo oops >&2; exit 7", code=7
    )
    assert done.stdout == "forge\n"
    assert done.stderr.endswith("oops\n")
    assert forge("pods", "-o", "json").stdout == "[]\n"


def test_a_line_without_an_end_is_shown_as_it_is(forge: Forge, busybox: str) -> None:
    assert forge("run", "--rm", busybox, "--", "sh", "-c", "printf no-newline").stdout == "no-newline"


def test_a_long_line_is_joined_again(forge: Forge, busybox: str) -> None:
    program = "dd if=/dev/zero bs=1000 count=100 2>/dev/null | tr '\\0' x; echo"
    assert forge("run", "--rm", busybox, "--", "sh", "-c", program).stdout == "x" * 100_000 + "\n"


def test_a_pod_from_start_to_removal(forge: Forge, forgeoned: Daemon, busybox: str) -> None:
    script = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait; done"
    pod = forge("run", "-d", "--name", "life", busybox, "--", "sh", "-c", script).stdout.strip()
    assert pod[:13] in forge("pods").stdout
    assert "life" in forge("ps").stdout
    assert forge("exec", "life", "--", "sh", "-c", "hostname; exit 3", code=3).stdout == "life\n"
    forge("rm", "life", code=1)
    forge("stop", "life")
    assert "Exited" in forge("ps", "-a").stdout
    assert forge("logs", "life").stdout == "up\n"
    assert forge("logs", "-f", "--tail", "0", "life").stdout == ""
    forge("rm", "life")
    assert list((forgeoned.directory / "logs").glob("*life*")) == []


def test_logs_follow_until_the_container_ends(forge: Forge, forgeoned: Daemon, busybox: str) -> None:
    forge("run", "-d", "--name", "tick", busybox, "--", "sh", "-c", "echo one; sleep 1; echo two; sleep 1; echo three")
    done = forge("logs", "-f", "tick")
    assert done.stdout == "one\ntwo\nthree\n"
    forge("rm", "tick")


def test_a_signal_takes_the_pod_away(forge: Forge, forgeoned: Daemon, busybox: str) -> None:
    program = "echo ready; exec sleep 1000"
    words = argv(forgeoned, "run", "--stop-timeout", "0", busybox, "--", "sh", "-c", program)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert forge("pods", "-o", "json").stdout == "[]\n"


def test_host_network_is_the_hosts(forge: Forge, busybox: str) -> None:
    program = "readlink /proc/self/ns/net"
    shown = forge("run", "--rm", "--host-network", busybox, "--", "sh", "-c", program).stdout.strip()
    assert shown == os.readlink("/proc/self/ns/net")
    assert forge("run", "--rm", busybox, "--", "sh", "-c", program).stdout.strip() != shown


def test_pull_reports_layers_and_images_lists_them(forge: Forge, push: Push) -> None:
    name = push("forge/layers:1", images.busybox(extra=[images.Entry("extra", os.urandom(1 << 20))]))
    done = forge("pull", "-o", "json", name)
    assert len([line for line in done.stderr.splitlines() if " done " in line or " exists " in line]) == 2
    image = json.loads(done.stdout)
    assert image["repo_tags"] == [name]
    assert name.rpartition(":")[0] in forge("images").stdout
    forge("rmi", name)
    assert name not in json.dumps(json.loads(forge("images", "-o", "json").stdout))


def test_an_interrupted_pull_ends_at_the_node_too(forgeoned: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        words = argv(forgeoned, "pull", f"127.0.0.1:{silent.getsockname()[1]}/never:1")
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as pulling:
            peer, _ = silent.accept()
            with peer:
                peer.settimeout(30)
                assert peer.recv(1 << 16)
                pulling.send_signal(signal.SIGINT)
                assert peer.recv(1 << 16) == b""
            assert pulling.wait(30) == 130


def test_what_the_node_refuses_is_said_in_its_own_words(forge: Forge, registry: object, forgeoned: Daemon) -> None:
    missing = f"{getattr(registry, 'address', '')}/no/such:image"
    assert "NOT_FOUND" in forge("pull", missing, code=1).stderr
    assert "forge: " in forge("run", "--rm", missing, code=125).stderr
    assert not Path(forgeoned.directory / "logs").exists() or forge("pods", "-o", "json").stdout == "[]\n"


def test_doctor_agrees_that_pods_run_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forgeone_shim.cli.main", "doctor", "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert {"overlayfs", "network", "nftables", "cgroups", "engine native"} <= {
        check["name"] for check in json.loads(done.stdout)["checks"] if check["ok"]
    }
