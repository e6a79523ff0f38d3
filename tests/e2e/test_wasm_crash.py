"""WebAssembly containers whose forgeoned, zygote or supervisor is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel import cgroups, freezer
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.guests import exit_with, guest, say, sleep, take, trap
from tests.e2e.conftest import Push
from tests.e2e.streams import eventually
from tests.e2e.wasm_pods import WasmPod, image, processes, pull, zygote

pytestmark = pytest.mark.root

_ANSWER = '(func (export "answer") (result i32) (i32.const 42))'
_MANY = [step for number in range(400) for step in (say(f"{number}\n"), sleep(0.02))]
GUESTS = {
    "code.wasm": guest(sleep(0.5), say("late\n"), exit_with(42)),
    "trap.wasm": guest(sleep(0.5), trap()),
    "take.wasm": guest(sleep(0.5), take(64)),
    "sleep.wasm": guest(say("here\n"), sleep(1000), more=_ANSWER),
    "count.wasm": guest(*_MANY),
}


@pytest.fixture
def pod(fresh_forgeoned: Daemon, push: Push) -> Iterator[WasmPod]:
    pod = WasmPod.plan(fresh_forgeoned)
    pod.annotations = {"wasm.forgeone.dev/exec": "answer", "wasm.forgeone.dev/memory-max": "1Gi"}
    pull(fresh_forgeoned, push("crash:latest", image(GUESTS)))
    yield pod.run()
    pod.remove()


@pytest.fixture
def guests(push: Push) -> str:
    return push("crash:latest", image(GUESTS))


def test_how_containers_ended_while_there_was_no_forgeoned_is_known_afterwards(pod: WasmPod, guests: str) -> None:
    hungry = pod.container(guests, "/take.wasm", name="take")
    hungry.linux.resources.memory_limit_in_bytes = 32 << 20
    code, trapped, killed = (
        pod.start(pod.container(guests, "/code.wasm", name="code")),
        pod.start(pod.container(guests, "/trap.wasm", name="trap")),
        pod.start(hungry),
    )
    held = pod.create(pod.container(guests, "/sleep.wasm", name="held"))
    running = pod.start(pod.container(guests, "/sleep.wasm", name="running"))
    pod.daemon.kill()
    eventually(lambda: not any(processes(id_) for id_ in (code, trapped, killed)))
    pod.daemon.start()
    assert pod.wait(code).exit_code == 42
    assert pod.log(code) == "late\n"
    assert (pod.wait(trapped).exit_code, pod.status(trapped).reason) == (134, "WasmTrap")
    assert pod.wait(killed).reason == "OOMKilled"
    assert pod.exec(running, "answer").stdout == b"42\n"
    pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=held))
    eventually(lambda: pod.log(held) == "here\n")
    pod.stop_container(held, grace=30)
    assert pod.status(held).exit_code == 128 + signal.SIGTERM


def test_containers_outlive_the_zygote_and_others_come_after_it(pod: WasmPod, guests: str) -> None:
    before = pod.start(pod.container(guests, "/sleep.wasm", name="before"))
    first = zygote(pod.daemon)
    os.kill(first, signal.SIGKILL)
    assert pod.exec(before, "answer").stdout == b"42\n"
    after = pod.start(pod.container(guests, "/sleep.wasm", name="after"))
    assert zygote(pod.daemon) != first
    eventually(lambda: pod.log(after) == "here\n")
    assert pod.status(before).state == pod.status(after).state == pb.CONTAINER_RUNNING


def test_a_zygote_that_is_killed_again_and_again_leaves_no_half_containers(pod: WasmPod, guests: str) -> None:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.15):
            try:
                os.kill(zygote(pod.daemon), signal.SIGKILL)
            except (AssertionError, ProcessLookupError):
                continue

    killer = threading.Thread(target=kill)
    killer.start()
    made = []
    try:
        for number in range(12):
            try:
                made.append(pod.create(pod.container(guests, "/sleep.wasm", name=f"c{number}")))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INTERNAL, error.details()
    finally:
        over.set()
        killer.join()
    known = {one.id for one in pod.daemon.runtime.ListContainers(pb.ListContainersRequest()).containers}
    assert known == set(made)


@pytest.mark.parametrize("watched", [True, False], ids=["while forgeoned runs", "while it does not"])
def test_a_container_whose_supervisor_was_killed_is_ended(pod: WasmPod, guests: str, watched: bool) -> None:
    id_, other = (pod.start(pod.container(guests, "/sleep.wasm", name=name)) for name in ("one", "other"))
    if not watched:
        pod.daemon.kill()
    os.kill(processes(id_, "forgeone-supervisor")[0], signal.SIGKILL)
    eventually(lambda: not processes(id_))
    if not watched:
        pod.daemon.start()
    ended = pod.wait(id_)
    assert (ended.exit_code, ended.reason) == (255, "Error")
    assert "supervisor" in ended.message
    assert pod.status(other).state == pb.CONTAINER_RUNNING


def test_a_paused_guest_stands_still_and_goes_on_or_ends_when_it_is_told(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests, "/count.wasm"))
    eventually(lambda: len(pod.log(id_)) > 10)
    node = node_pb2_grpc.NodeStub(pod.daemon.channel)
    node.PauseContainer(node_pb2.PauseContainerRequest(container_id=id_))
    before = pod.log(id_)
    time.sleep(0.2)
    assert len(pod.log(id_).split()) <= len(before.split()) + 1
    pod.daemon.kill()
    pod.daemon.start()
    node = node_pb2_grpc.NodeStub(pod.daemon.channel)
    node.ResumeContainer(node_pb2.ResumeContainerRequest(container_id=id_))
    eventually(lambda: len(pod.log(id_).split()) > len(before.split()) + 2)
    node.PauseContainer(node_pb2.PauseContainerRequest(container_id=id_))
    pod.stop_container(id_, grace=30)
    assert pod.status(id_).exit_code == 128 + signal.SIGTERM


def test_a_frozen_guest_can_be_ended_whoever_froze_it(pod: WasmPod, guests: str) -> None:
    """With a supervisor, and without one any more."""
    one, other = (pod.start(pod.container(guests, "/sleep.wasm", name=name)) for name in ("one", "other"))
    lines = Path(f"/proc/{processes(one, 'forgeone-wasm')[0]}/cgroup").read_text().splitlines()
    host = cgroups.detect()
    place = next(line.split(":", 2)[2] for line in lines if "freezer" in line or host.mode is Mode.V2)
    freezer.freeze(host, place, Deadline.after(10))
    began = time.monotonic()
    pod.stop_container(one)
    node = node_pb2_grpc.NodeStub(pod.daemon.channel)
    node.PauseContainer(node_pb2.PauseContainerRequest(container_id=other))
    os.kill(processes(other, "forgeone-supervisor")[0], signal.SIGKILL)
    assert "supervisor" in pod.wait(other).message
    assert time.monotonic() - began < 10
    assert processes(one) == processes(other) == []
