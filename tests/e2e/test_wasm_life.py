"""The life of a WebAssembly container over the CRI socket."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from hack.lab import http_guest, images
from hack.lab.daemon import Daemon
from hack.lab.guests import (
    arguments,
    cat,
    echo,
    environment,
    exit_with,
    guest,
    put,
    recurse,
    say,
    sleep,
    spin,
    take,
    trap,
)
from tests.e2e.conftest import Push
from tests.e2e.streams import eventually
from tests.e2e.wasm_pods import WasmPod, image, processes, pull

pytestmark = pytest.mark.root

_ADD = """
(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
(func (export "forever") (loop $for (br $for)))
"""
GUESTS = {
    "hello.wasm": guest(say("hello\n"), say("oops\n", fd=2), exit_with(200)),
    "who.wasm": guest(arguments(), environment()),
    "files.wasm": guest(cat("/data/in"), put("/data/out", "written"), put("/tmp/own", "x"), cat("/tmp/own")),
    "write.wasm": guest(put("/data/out", "written")),
    "proc.wasm": guest(cat("/proc/self/status")),
    "echo.wasm": guest(echo()),
    "sleep.wasm": guest(say("sleeping\n"), sleep(1000), more=_ADD),
    "spin.wasm": guest(say("spinning\n"), spin()),
    "trap.wasm": guest(say("before\n"), trap()),
    "deep.wasm": guest(recurse()),
    "take.wasm": guest(take(64), say("taken\n")),
    "ok.wasm": guest(say("ok\n")),
}


@pytest.fixture(scope="module")
def guests(forgeoned: Daemon, push: Push) -> str:
    directories = [images.Entry(name, type=b"5", mode=0o1777) for name in ("tmp", "data")]
    return pull(forgeoned, push("guests:latest", image(GUESTS, extra=tuple(directories))))


@pytest.fixture
def pod(forgeoned: Daemon, guests: str) -> Iterator[WasmPod]:
    pod = WasmPod.plan(forgeoned).run()
    yield pod
    pod.remove()


def _pod(daemon: Daemon, **annotations: str) -> WasmPod:
    pod = WasmPod.plan(daemon)
    pod.annotations = {f"wasm.forgeone.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return pod.run()


def test_a_module_writes_its_log_and_ends_with_any_code(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests))
    status = pod.wait(id_)
    assert (status.exit_code, status.reason) == (200, "Error")
    lines = Path(status.log_path).read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["stdout F hello", "stderr F oops"]


def test_a_guest_has_its_arguments_and_variables(pod: WasmPod, guests: str) -> None:
    config = pod.container(guests, "/who.wasm", "one", "two words")
    config.envs.add(key="COLOUR", value=b"blue")
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    lines = pod.log(id_).splitlines()
    assert lines[:3] == ["/who.wasm", "one", "two words"]
    assert {"COLOUR=blue", "HOSTNAME=tester", "HOME=/"} <= set(lines)


def test_volumes_are_seen_and_written_to_and_read_only_ones_are_not(pod: WasmPod, guests: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    tmp_path.chmod(0o777)
    config = pod.container(guests, "/files.wasm", name="rw")
    config.mounts.add(container_path="/data", host_path=str(tmp_path))
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0, pod.log(id_)
    assert pod.log(id_) == "from the host\nx\n"
    assert (tmp_path / "out").read_text() == "written"
    config = pod.container(guests, "/write.wasm", name="ro")
    config.mounts.add(container_path="/data", host_path=str(tmp_path), readonly=True)
    # 100 and WASI's EROFS, or EIO where wasmtime knows no better
    assert pod.wait(pod.start(config)).exit_code in (100 + 69, 100 + 29)


def test_a_guest_runs_as_its_user_in_files_that_have_no_proc(pod: WasmPod, guests: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    config = pod.container(guests, "/write.wasm", name="user")
    config.mounts.add(container_path="/data", host_path=str(tmp_path))
    config.linux.security_context.run_as_user.value = 4321
    assert pod.wait(pod.start(config)).exit_code == 0
    assert (tmp_path / "out").stat().st_uid == 4321
    assert pod.wait(pod.start(pod.container(guests, "/proc.wasm", name="proc"))).exit_code == 100 + 44


@pytest.mark.parametrize("module", ["spin", "sleep"])
def test_a_signal_ends_a_guest_at_once_whatever_it_does(pod: WasmPod, guests: str, module: str) -> None:
    id_ = pod.start(pod.container(guests, f"/{module}.wasm"))
    eventually(lambda: pod.log(id_) != "")
    began = time.monotonic()
    pod.stop_container(id_, grace=60)
    assert time.monotonic() - began < 10
    assert pod.status(id_).exit_code == 128 + signal.SIGTERM


def test_a_trap_is_told_with_its_reason(pod: WasmPod, guests: str) -> None:
    id_ = pod.start(pod.container(guests, "/trap.wasm"))
    status = pod.wait(id_)
    assert (status.exit_code, status.reason) == (134, "WasmTrap")
    assert "unreachable" in status.message
    assert "\n" not in status.message
    assert pod.log(id_).startswith("before\n")
    assert "wasm backtrace" in pod.log(id_)


def test_a_stack_that_is_used_up_harms_nobody(pod: WasmPod, guests: str) -> None:
    status = pod.wait(pod.start(pod.container(guests, "/deep.wasm")))
    assert (status.exit_code, status.reason) == (134, "WasmTrap")


def test_memory_grows_to_the_limit_and_no_further(pod: WasmPod, guests: str) -> None:
    config = pod.container(guests, "/take.wasm", name="small")
    config.linux.resources.memory_limit_in_bytes = 32 << 20
    assert pod.wait(pod.start(config)).exit_code == 99
    config = pod.container(guests, "/take.wasm", name="large")
    config.linux.resources.memory_limit_in_bytes = 128 << 20
    assert pod.wait(pod.start(config)).exit_code == 0


def test_a_container_beyond_its_cgroup_is_killed_for_memory(forgeoned: Daemon, guests: str) -> None:
    pod = _pod(forgeoned, memory_max="1Gi")
    try:
        config = pod.container(guests, "/take.wasm")
        config.linux.resources.memory_limit_in_bytes = 32 << 20
        status = pod.wait(pod.start(config))
        assert (status.exit_code, status.reason) == (137, "OOMKilled")
    finally:
        pod.remove()


def test_a_limit_that_leaves_no_room_for_a_start_is_named(pod: WasmPod, guests: str) -> None:
    before = pod.daemon.left()
    config = pod.container(guests)
    config.linux.resources.memory_limit_in_bytes = 1 << 20
    with pytest.raises(grpc.RpcError, match="memory limit is so low") as refused:
        pod.create(config)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pod.daemon.left(expected=before) == before


def test_a_cpu_budget_ends_a_guest(forgeoned: Daemon, guests: str) -> None:
    pod = _pod(forgeoned, cpu_budget="100ms")
    try:
        status = pod.wait(pod.start(pod.container(guests, "/spin.wasm")))
        assert (status.exit_code, status.reason) == (134, "CPUBudgetExceeded")
    finally:
        pod.remove()


def test_an_exec_runs_an_export_or_a_module_and_nothing_else(forgeoned: Daemon, guests: str) -> None:
    pod = _pod(forgeoned, exec="add,forever")
    try:
        id_ = pod.start(pod.container(guests, "/sleep.wasm"))
        result = pod.exec(id_, "add", "40", "2")
        assert (result.stdout, result.exit_code) == (b"42\n", 0)
        result = pod.exec(id_, "/hello.wasm")
        assert (result.stdout, result.stderr, result.exit_code) == (b"hello\n", b"oops\n", 200)
        assert pod.exec(id_, "/trap.wasm").exit_code == 134
        with pytest.raises(grpc.RpcError) as caught:
            pod.exec(id_, "sh", "-c", "true")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "wasm.forgeone.dev/exec" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            pod.exec(id_, "forever", timeout=1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: len(processes(id_)) == 2)
    finally:
        pod.remove()


def test_a_command_that_is_no_module_fails_the_start(pod: WasmPod, guests: str) -> None:
    for name, command in (("none", "/none.wasm"), ("data", "/data")):
        id_ = pod.create(pod.container(guests, command, name=name))
        with pytest.raises(grpc.RpcError) as caught:
            pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_))
        assert command in caught.value.details()
        assert (pod.status(id_).exit_code, pod.status(id_).reason) == (128, "StartError")


def test_what_a_guest_cannot_have_is_refused(forgeoned: Daemon, guests: str) -> None:
    pod = WasmPod.plan(forgeoned)
    pod.config.linux.security_context.privileged = True
    pod.run()
    try:
        config = pod.container(guests)
        config.linux.security_context.privileged = True
        with pytest.raises(grpc.RpcError) as caught:
            pod.create(config)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "privileged" in caught.value.details()
    finally:
        pod.remove()


def test_an_unknown_annotation_is_refused(forgeoned: Daemon, guests: str) -> None:
    pod = _pod(forgeoned, memory="64Mi")
    try:
        with pytest.raises(grpc.RpcError) as caught:
            pod.create(pod.container(guests))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "wasm.forgeone.dev/memory" in caught.value.details()
    finally:
        pod.remove()


def test_limits_change_in_place_and_are_counted(pod: WasmPod, guests: str) -> None:
    config = pod.container(guests, "/spin.wasm")
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    id_ = pod.start(config)
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_period=100_000, cpu_quota=20_000)
    request = pb.UpdateContainerResourcesRequest(container_id=id_, linux=resources)
    pod.daemon.runtime.UpdateContainerResources(request)
    assert pod.status(id_).resources.linux.memory_limit_in_bytes == 96 << 20

    def used() -> int:
        stats = pod.daemon.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=id_)).stats
        return int(stats.cpu.usage_core_nano_seconds.value)

    before, began = used(), time.monotonic()
    time.sleep(0.5)
    share = (used() - before) / 1e9 / (time.monotonic() - began)
    assert 0 < share < 0.5


def test_a_container_is_restarted_by_another_of_its_name(pod: WasmPod, guests: str) -> None:
    for attempt in range(2):
        id_ = pod.start(pod.container(guests, "/ok.wasm", attempt=attempt))
        assert pod.wait(id_).exit_code == 0
        assert pod.log(id_) == "ok\n"


def test_a_program_runs_beside_a_module(pod: WasmPod, guests: str, busybox: str) -> None:
    pull(pod.daemon, busybox)
    module = pod.start(pod.container(guests, "/sleep.wasm", name="module"))
    program = pod.start(pod.container(busybox, "sleep", "1000", name="program"))
    assert pod.exec(program, "echo", "beside").stdout == b"beside\n"
    request = pb.ContainerStatusRequest(container_id=program, verbose=True)
    assert '"engine":"native"' in pod.daemon.runtime.ContainerStatus(request, timeout=30).info["info"]
    assert pod.status(module).state == pod.status(program).state == pb.CONTAINER_RUNNING


def test_containers_that_share_their_processes_have_an_init(forgeoned: Daemon, guests: str, busybox: str) -> None:
    pull(forgeoned, busybox)
    pod = WasmPod.plan(forgeoned, pid=pb.POD).run()
    try:
        module = pod.start(pod.container(guests, "/sleep.wasm", name="module"))
        program = pod.start(pod.container(busybox, "sleep", "1000", name="program"))
        seen = pod.exec(program, "ps", "-o", "pid,args").stdout.decode()
        assert f"forgeone-wasm {module}" in seen
        pod.stop_container(module, grace=30)
        assert pod.status(module).exit_code == 128 + signal.SIGTERM
        assert pod.ready()
        os.kill(processes(pod.id, "forgeone-init")[0], signal.SIGKILL)
        eventually(lambda: not pod.ready())
        assert pod.wait(program).exit_code == 137
    finally:
        pod.remove()


def test_a_server_answers_probes_at_its_pods_address_and_clients_at_a_host_port(
    forgeoned: Daemon, push: Push, busybox: str
) -> None:
    component = pull(forgeoned, push("served:latest", image({"served.wasm": bytes(wat2wasm(http_guest.guest()))})))
    pull(forgeoned, busybox)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    server, client = WasmPod.plan(forgeoned), WasmPod.plan(forgeoned)
    server.config.port_mappings.add(container_port=8080, host_port=port)
    server.run()
    client.run()
    try:
        server.start(server.container(component))
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=server.id)
        address = forgeoned.runtime.PodSandboxStatus(request).status.network.ip
        eventually(lambda: _answer(address, 8080) == b"Hello\n")
        gateway = address.rpartition(".")[0] + ".1"
        program = client.start(client.container(busybox, "sleep", "1000"))
        assert client.exec(program, "wget", "-qO-", f"http://{gateway}:{port}/h").stdout == b"Hello\n"
    finally:
        server.remove()
        client.remove()


def _answer(address: str, port: int) -> bytes:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/h")
        return connection.getresponse().read()
    except OSError:
        return b""
    finally:
        connection.close()
