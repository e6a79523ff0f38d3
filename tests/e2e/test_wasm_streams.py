"""Streams of WebAssembly containers: attach and exec over the streaming port, the log reopened."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.guests import echo, exit_with, guest, say, sleep, spin
from tests.e2e.conftest import Push
from tests.e2e.streams import SpdyClient, eventually, exit_code
from tests.e2e.wasm_pods import WasmPod, image, processes, pull

pytestmark = pytest.mark.root

V4 = "v4.channel.k8s.io"
GUESTS = {
    "sleep.wasm": guest(say("here\n"), sleep(1000)),
    "spin.wasm": guest(say("here\n"), spin()),
    "cat.wasm": guest(echo(), say("problem\n", fd=2), exit_with(7)),
}


@pytest.fixture(scope="module")
def guests(forgeoned: Daemon, push: Push) -> str:
    return pull(forgeoned, push("streams:latest", image(GUESTS)))


@pytest.fixture
def pod(forgeoned: Daemon, guests: str) -> Iterator[WasmPod]:
    pod = WasmPod.plan(forgeoned).run()
    yield pod
    pod.remove()


def test_an_exec_has_its_streams_and_its_exit_code(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests))
    request = pb.ExecRequest(container_id=id_, cmd=["/cat.wasm"], stdin=True, stdout=True, stderr=True)
    with SpdyClient(pod.daemon.runtime.Exec(request).url, V4) as client:
        error, stdin, stdout, stderr = (client.open(streamType=k) for k in ("error", "stdin", "stdout", "stderr"))
        body = b"all of it\n" * 10_000
        client.say(stdin, body, fin=True)
        client.rest()
        assert (client.heard[stdout], client.heard[stderr]) == (body, b"problem\n")
        assert exit_code(client.heard[error]) == 7


def test_a_terminal_is_one(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests))
    request = pb.ExecRequest(container_id=id_, cmd=["/cat.wasm"], stdin=True, stdout=True, tty=True)
    with SpdyClient(pod.daemon.runtime.Exec(request).url, V4) as client:
        error, stdin, stdout, resize = (client.open(streamType=k) for k in ("error", "stdin", "stdout", "resize"))
        client.say(resize, json.dumps({"Width": 40, "Height": 10}).encode())
        client.say(stdin, b"typed\n")
        client.until(lambda: client.heard[stdout].count(b"typed\r\n") == 2)
        client.say(stdin, b"\x04")
        client.rest()
        assert client.heard[stdout].endswith(b"problem\r\n")
        assert exit_code(client.heard[error]) == 7


def test_an_exec_ends_with_its_client(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests))
    request = pb.ExecRequest(container_id=id_, cmd=["/sleep.wasm"], stdout=True)
    with SpdyClient(pod.daemon.runtime.Exec(request).url, V4) as client:
        client.open(streamType="error")
        stdout = client.open(streamType="stdout")
        client.until(lambda: client.heard[stdout] == b"here\n")
        assert len(_inside(id_)) == 2
    eventually(lambda: len(_inside(id_)) == 1)
    assert pod.status(id_).state == pb.CONTAINER_RUNNING


@pytest.mark.parametrize("module", ["sleep", "spin"])
def test_a_key_interrupts_an_exec_whatever_it_does(pod: WasmPod, guests: str, module: str) -> None:
    id_ = pod.start(pod.container(guests))
    request = pb.ExecRequest(container_id=id_, cmd=[f"/{module}.wasm"], stdin=True, stdout=True, tty=True)
    with SpdyClient(pod.daemon.runtime.Exec(request).url, V4) as client:
        error, stdin, stdout, _ = (client.open(streamType=k) for k in ("error", "stdin", "stdout", "resize"))
        client.until(lambda: client.heard[stdout] == b"here\r\n")
        client.say(stdin, b"\x03")
        client.rest()
        assert exit_code(client.heard[error]) == 130
    assert pod.status(id_).state == pb.CONTAINER_RUNNING


def test_an_exec_beside_the_end_of_its_container_says_so(pod: WasmPod, guests: str) -> None:
    """Whatever it was doing when the container ended."""
    for attempt in range(4):
        id_ = pod.start(pod.container(guests, attempt=attempt))
        request = pb.ExecSyncRequest(container_id=id_, cmd=["/cat.wasm"], timeout=20)
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(_until_refused, pod, request) for _ in range(4)]
            time.sleep(0.02 * attempt)
            os.kill(processes(id_, "forgeone-wasm")[0], signal.SIGKILL)
            assert {run.result() for run in runs} == {grpc.StatusCode.FAILED_PRECONDITION}


def _until_refused(pod: WasmPod, request: pb.ExecSyncRequest) -> grpc.StatusCode:
    try:
        while True:
            pod.daemon.runtime.ExecSync(request, timeout=60)
    except grpc.RpcError as error:
        return error.code()


def _inside(container_id: str) -> list[int]:
    """The processes in the container's PID namespace, as the host has them."""
    first = processes(container_id, "forgeone-wasm")[0]
    namespace = os.stat(f"/proc/{first}/ns/pid").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/pid").stat().st_ino == namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("tty", [False, True])
def test_what_is_said_to_a_container_is_in_its_log(pod: WasmPod, guests: str, tty: bool) -> None:
    config = pod.container(guests, "/cat.wasm")
    config.stdin, config.stdin_once, config.tty = True, True, tty
    id_ = pod.start(config)
    request = pb.AttachRequest(container_id=id_, stdin=True, stdout=True, stderr=not tty, tty=tty)
    with SpdyClient(pod.daemon.runtime.Attach(request).url, V4) as client:
        kinds = ("error", "stdin", "stdout", "resize") if tty else ("error", "stdin", "stdout", "stderr")
        streams = {kind: client.open(streamType=kind) for kind in kinds}
        client.say(streams["stdin"], b"words\n" + (b"\x04" if tty else b""), fin=not tty)
        client.until(lambda: b"words" in client.heard[streams["stdout"]])
    assert pod.wait(id_).exit_code == 7
    assert "words\n" in pod.log(id_).replace("\r", "")
    assert "problem\n" in pod.log(id_).replace("\r", "")


def test_a_log_that_was_moved_away_is_begun_anew(pod: WasmPod, guests: str) -> None:
    config = pod.container(guests, "/cat.wasm")
    config.stdin = config.stdin_once = True
    id_ = pod.start(config)
    log = Path(pod.status(id_).log_path)
    log.rename(log.with_suffix(".old"))
    pod.daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id_))
    request = pb.AttachRequest(container_id=id_, stdin=True, stdout=True)
    with SpdyClient(pod.daemon.runtime.Attach(request).url, V4) as client:
        _, stdin, _ = (client.open(streamType=kind) for kind in ("error", "stdin", "stdout"))
        client.say(stdin, b"new\n", fin=True)
        pod.wait(id_)
    assert "new\n" in pod.log(id_)
    assert log.with_suffix(".old").read_text() == ""
