"""What a WebAssembly container knows of itself, and what can be known of it: ForgeOne's interface, traces, pauses."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from forgeone_shim import abi
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

# Writes what each function gave it, 2048 bytes in all; `know` is for an exec.
KNOW = """(module
  (import "forgeone:introspect@1" "identity" (func $identity (param i32 i32 i32) (result i32)))
  (import "forgeone:introspect@1" "limits" (func $limits (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "usage" (func $usage (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "history" (func $history (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "state" (func $state (result i32)))
  (import "forgeone:log@1" "write" (func $log (param i32 i32 i32 i32 i32) (result i32)))
  (import "forgeone:yield@1" "give_up" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\00\\10\\00\\00\\00\\08\\00\\00")
  (data (i32.const 16) "tick\\0a\\00\\00\\00" "\\10\\00\\00\\00\\05\\00\\00\\00")
  (func $know (export "know")
    (memory.fill (i32.const 4096) (i32.const 0) (i32.const 2048))
    (drop (call $identity (i32.const 0) (i32.const 4096) (i32.const 64)))
    (drop (call $identity (i32.const 1) (i32.const 4160) (i32.const 64)))
    (drop (call $identity (i32.const 2) (i32.const 4224) (i32.const 64)))
    (drop (call $limits (i32.const 4288) (i32.const 64)))
    (drop (call $usage (i32.const 4352) (i32.const 64)))
    (i32.store (i32.const 4416) (call $state))
    (i32.store (i32.const 4420) (call $history (i32.const 4424) (i32.const 1024)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (i64.store (i32.const 8216) (i64.const 20000000)) ;; a timeout on the clock, in 20 ms
    (i32.store (i32.const 8208) (i32.const 1))
    (drop (call $log (i32.const 2) (i32.const 16) (i32.const 4) (i32.const 16) (i32.const 5)))
    (loop
      (drop (call $write (i32.const 1) (i32.const 24) (i32.const 1) (i32.const 8)))
      (drop (call $poll (i32.const 8192) (i32.const 8256) (i32.const 1) (i32.const 8)))
      (drop (call $yield))
      (br 0))))"""

OPENS = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "etc/shadow")
  (func (export "_start")
    (drop (call $open (i32.const 4) (i32.const 1) (i32.const 0) (i32.const 10) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64)))
    (call $exit (i32.const 3))))"""

YIELDS = """(module
  (import "forgeone:yield@1" "give_up" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (loop (drop (call $yield)) (br 0))))"""

COMPONENT = """(component
  (core module $m (func (export "run") (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $r)))"""

SPINS = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
MODULES = {"know": KNOW, "opens": OPENS, "yields": YIELDS, "spins": SPINS, "component": COMPONENT}

Node = node_pb2_grpc.NodeStub


@pytest.fixture(scope="module")
def guests(forgeoned: Daemon, push: Push) -> str:
    modules = {f"{name}.wasm": bytes(wat2wasm(text)) for name, text in MODULES.items()}
    return pull(forgeoned, push("insight:latest", image(modules)))


MakePod = Callable[..., WasmPod]


@pytest.fixture
def make_pod(forgeoned: Daemon, guests: str) -> Iterator[MakePod]:
    made: list[WasmPod] = []

    def make(**annotations: str) -> WasmPod:
        pod = WasmPod.plan(forgeoned)
        pod.annotations = {f"wasm.forgeone.dev/{key}": value for key, value in annotations.items()}
        made.append(pod)
        return pod.run()

    yield make
    for pod in made:
        pod.remove()


def _await_ticks(pod: WasmPod, id_: str, number: int = 3) -> None:
    log, until = Path(pod.status(id_).log_path), time.monotonic() + patient(20)
    before = log.read_text().count("tick") if log.exists() else 0
    while not log.exists() or log.read_text().count("tick") < before + number:
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.01)


def _know(pod: WasmPod, id_: str) -> tuple[str, str, str, tuple[int, ...], tuple[int, ...], str, list[str]]:
    said = pod.exec(id_, "know").stdout
    assert len(said) == 2048
    texts = [said[at : at + 64].rstrip(b"\0").decode() for at in (0, 64, 128)]
    state, size = struct.unpack_from("<Ii", said, 320)
    steps = [abi.TRANSITION.unpack_from(said, 328 + at) for at in range(0, size, abi.TRANSITION.size)]
    assert [one[0] for one in steps] == sorted(one[0] for one in steps)
    events = [abi.EVENTS[event] for _, _, event, _ in steps]
    limits, usage = abi.LIMITS.unpack_from(said, 192), abi.USAGE.unpack_from(said, 256)
    return texts[0], texts[1], texts[2], limits, usage, abi.STATES[state], events


def _node(pod: WasmPod) -> Node:
    return Node(pod.daemon.channel)


def _pause(pod: WasmPod, id_: str) -> None:
    _node(pod).PauseContainer(node_pb2.PauseContainerRequest(container_id=id_), timeout=patient(20))


def _resume(pod: WasmPod, id_: str) -> None:
    _node(pod).ResumeContainer(node_pb2.ResumeContainerRequest(container_id=id_), timeout=patient(20))


def _trace(pod: WasmPod, id_: str, *, follow: bool = False) -> Iterator[node_pb2.TraceContainerResponse]:
    request = node_pb2.TraceContainerRequest(container_id=id_, follow=follow)
    answer: Iterator[node_pb2.TraceContainerResponse] = _node(pod).TraceContainer(request, timeout=patient(60))
    return answer


def test_a_container_knows_itself_through_pauses_updates_and_a_killed_forgeoned(make_pod: MakePod, guests: str) -> None:
    pod = make_pod(exec="know")
    config = pod.container(guests, "/know.wasm")
    config.linux.resources.memory_limit_in_bytes = 256 << 20
    id_ = pod.start(config)
    _await_ticks(pod, id_)
    first = next(line for line in Path(pod.status(id_).log_path).read_text().splitlines() if " stderr F " in line)
    line = json.loads(first.split(" stderr F ", 1)[1])
    assert (line["level"], line["context"], line["message"]) == ("info", "tick", "tick\n")

    known = _know(pod, id_)
    assert known[:3] == (id_, "main", pod.id)
    assert known[3] == (256 << 20, 256 << 20, 0, 0, 0, 0)
    assert known[4][2] > 1 << 20
    assert known[5:] == ("running", ["boot", "start"])

    _pause(pod, id_)
    pod.daemon.kill()
    pod.daemon.start()
    assert list(_node(pod).ListPausedContainers(node_pb2.ListPausedContainersRequest()).container_ids) == [id_]
    log = Path(pod.status(id_).log_path)
    time.sleep(0.05)
    before = log.read_text()
    time.sleep(0.1)
    assert log.read_text() == before, "a paused guest does nothing"
    _resume(pod, id_)
    _await_ticks(pod, id_)
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=512 << 20, cpu_quota=50_000, cpu_period=100_000)
    update = pb.UpdateContainerResourcesRequest(container_id=id_, linux=resources)
    pod.daemon.runtime.UpdateContainerResources(update, timeout=patient(20))
    known = _know(pod, id_)
    assert known[3][:4] == (512 << 20, 256 << 20, 50_000, 100_000)
    assert known[5:] == ("running", ["boot", "start", "pause", "resume"])


@pytest.mark.parametrize(("guest", "annotations"), [("yields", {}), ("spins", {"cpu-slice": "10ms"})])
def test_a_guest_that_yields_can_be_paused_resumed_and_stopped(
    make_pod: MakePod, guests: str, guest: str, annotations: dict[str, str]
) -> None:
    pod = make_pod(**annotations)
    id_ = pod.start(pod.container(guests, f"/{guest}.wasm"))
    _pause(pod, id_)
    _resume(pod, id_)
    _pause(pod, id_)
    pod.stop_container(id_, grace=20)
    assert pod.status(id_).exit_code == 128 + signal.SIGTERM


def test_a_traced_container_shows_its_calls_after_its_end(make_pod: MakePod, guests: str) -> None:
    pod = make_pod(trace="true")
    id_ = pod.start(pod.container(guests, "/opens.wasm"))
    assert pod.wait(id_).exit_code == 3
    calls = [call for message in _trace(pod, id_) for call in message.calls]
    told = [(call.function, list(call.arguments)[:3], call.returned, call.result) for call in calls]
    assert told == [
        ("path_open", ["fd=4", "dirflags=0x1", 'path="etc/shadow"'], True, "noent"),
        ("proc_exit", ["code=3"], False, ""),
    ]
    assert calls[0].HasField("duration")
    assert abs(calls[0].at - time.time_ns()) < 60e9


def test_a_trace_is_followed_and_outlives_a_guest_that_is_killed(make_pod: MakePod, guests: str) -> None:
    pod = make_pod(trace="true")
    id_ = pod.start(pod.container(guests, "/yields.wasm"))
    following = _trace(pod, id_, follow=True)
    first = next(following)
    assert {call.function for call in first.calls} == {"give_up"}
    request = pb.ContainerStatusRequest(container_id=id_, verbose=True)
    info = json.loads(pod.daemon.runtime.ContainerStatus(request, timeout=patient(20)).info["info"])
    os.kill(info["pid"], signal.SIGKILL)
    rest = list(following)
    assert pod.wait(id_).exit_code == 137
    last = rest[-1].calls[-1] if rest else first.calls[-1]
    assert last.number > 1000 or last.number >= first.calls[-1].number
    again = [call for message in _trace(pod, id_) for call in message.calls]
    assert again[-1].number == last.number


def test_what_cannot_be_traced_is_refused_when_it_is_created(make_pod: MakePod, guests: str) -> None:
    pod = make_pod(trace="true")
    with pytest.raises(grpc.RpcError) as refused:
        pod.create(pod.container(guests, "/component.wasm"))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "cannot be traced: it is a component" in (refused.value.details() or "")


def test_a_container_that_is_not_traced_says_so(make_pod: MakePod, guests: str) -> None:
    pod = make_pod()
    id_ = pod.start(pod.container(guests, "/yields.wasm"))
    with pytest.raises(grpc.RpcError) as refused:
        list(_trace(pod, id_))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "wasm.forgeone.dev/trace" in (refused.value.details() or "")
