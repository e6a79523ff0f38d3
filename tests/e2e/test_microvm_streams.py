"""What goes in and out of containers in virtual machines: any amount, both ways, to its end."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from engines.microvm.client import Keeper
from forgeone_shim.deadline import Deadline
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.microvm_pods import VmPod, keepers
from tests.e2e.streams import SpdyClient, eventually, exit_code

pytestmark = pytest.mark.root

V4 = "v4.channel.k8s.io"
_BODY = os.urandom(1 << 20) + b"\n"
_ECHO = "mkfifo /tmp/f; nc -l -p 7000 < /tmp/f | cat > /tmp/f"


@pytest.fixture(scope="module")
def daemon(machines: Daemon) -> Daemon:
    return machines


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[VmPod]:
    found = VmPod.plan(daemon).run()
    yield found
    found.remove()


@pytest.fixture(scope="module")
def idle(pod: VmPod, busybox: str) -> str:
    """A container that waits."""
    return pod.start(pod.container(busybox, name="idle"))


def test_a_command_gives_back_all_that_it_is_given(pod: VmPod, idle: str) -> None:
    request = pb.ExecRequest(container_id=idle, cmd=["sh", "-c", "cat; echo err >&2; exit 7"], stdin=True, stdout=True)
    request.stderr = True
    with SpdyClient(pod.daemon.runtime.Exec(request).url, V4) as client:
        error, stdin, stdout, stderr = (client.open(streamType=k) for k in ("error", "stdin", "stdout", "stderr"))
        client.say(stdin, _BODY, fin=True)
        client.rest()
        assert client.heard[stdout] == _BODY
        assert client.heard[stderr] == b"err\n"
        assert exit_code(client.heard[error]) == 7


def test_a_command_that_leaves_somebody_with_its_output_ends_all_the_same(pod: VmPod, idle: str) -> None:
    found = pod.exec(idle, "sh", "-c", "sleep 1000 & echo started")
    assert (found.exit_code, found.stdout) == (0, b"started\n")


@pytest.mark.parametrize("tty", [False, True])
def test_what_is_said_to_a_container_comes_to_it_and_ends(pod: VmPod, busybox: str, *, tty: bool) -> None:
    config = pod.container(busybox, "sh", "-c", "cat; echo done", name=f"attached-{tty}")
    config.stdin, config.stdin_once, config.tty = True, True, tty
    id_ = pod.start(config)
    request = pb.AttachRequest(container_id=id_, stdin=True, stdout=True, stderr=not tty, tty=tty)
    with SpdyClient(pod.daemon.runtime.Attach(request).url, V4) as client:
        kinds = ("error", "stdin", "stdout", "resize") if tty else ("error", "stdin", "stdout", "stderr")
        streams = {kind: client.open(streamType=kind) for kind in kinds}
        client.say(streams["stdin"], b"words\n", fin=True)
        client.until(lambda: b"words" in client.heard[streams["stdout"]])
    assert pod.wait(id_).exit_code == 0
    assert pod.log(id_).replace("\r", "").endswith("words\ndone\n")


def test_the_log_has_every_byte_of_both_streams_in_their_order(pod: VmPod, busybox: str) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; seq 1 40000"
    id_ = pod.start(pod.container(busybox, "sh", "-c", script, name="numbers"))
    assert pod.wait(id_).exit_code == 0
    lines = Path(pod.status(id_).log_path).read_text().splitlines()
    out = [line.split(" ", 3)[3] for line in lines if " stdout F " in line]
    err = [line.split(" ", 3)[3] for line in lines if " stderr F " in line]
    assert err == [f"err {i}" for i in range(200)]
    assert out == [f"out {i}" for i in range(200)] + [str(i) for i in range(1, 40001)]


def test_a_log_that_was_moved_away_is_begun_anew(pod: VmPod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", "while :; do echo line; sleep 0.1; done", name="moved"))
    log = Path(pod.status(id_).log_path)
    eventually(lambda: "line" in log.read_text())
    log.rename(log.with_suffix(".old"))
    pod.daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id_))
    eventually(lambda: "line" in log.read_text())
    pod.stop_container(id_)


def test_connections_into_the_machine_carry_any_amount_both_ways(pod: VmPod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", _ECHO, name="echo"))
    eventually(lambda: b":1B58 " in pod.exec(id_, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout)
    state = Path(pod.daemon.config.state, "microvm/pods", pod.id)
    with Keeper(pod.id, str(state)).dial(7000, Deadline.after(patient(20))) as line:
        sender = threading.Thread(target=line.sendall, args=(_BODY,))
        sender.start()
        heard = hashlib.sha256()
        left = len(_BODY)
        while left:
            piece = line.recv(65536)
            assert piece
            heard.update(piece)
            left -= len(piece)
        sender.join()
    assert heard.digest() == hashlib.sha256(_BODY).digest()
    assert pod.wait(id_).exit_code == 0


def test_a_keeper_has_what_it_needs_for_its_files_and_can_make_no_process(pod: VmPod) -> None:
    (keeper,) = keepers(pod.daemon)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{keeper}/status").read_text().splitlines())
    # CAP_DAC_OVERRIDE and CAP_KILL.
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm")} == {1 << 1 | 1 << 5}
    assert {int(status[name], 16) for name in ("CapInh", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
