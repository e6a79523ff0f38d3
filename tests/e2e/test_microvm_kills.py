"""Machines, keepers and forgeoned killed at any point (kill -9): every container's end is told, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e import microvm_pods
from tests.e2e.microvm_pods import VmPod, keepers, monitors
from tests.e2e.streams import eventually

pytestmark = pytest.mark.root

# Into the middle of a pod's making, which takes half a second.
_DELAYS = (0.05, 0.25)


@pytest.fixture(scope="module")
def daemon(machines: Daemon) -> Daemon:
    # What follows begins from the template that is made beside the first of them.
    first = VmPod.plan(machines).run()
    microvm_pods.await_template(machines)
    first.remove()
    return machines


def _processes(daemon: Daemon) -> list[int]:
    return [*keepers(daemon), *monitors(daemon)]


@pytest.mark.parametrize("victims", [monitors, keepers, _processes])
def test_whatever_of_a_pod_is_killed_all_of_it_ends_and_can_be_removed(
    daemon: Daemon, busybox: str, victims: Callable[[Daemon], list[int]]
) -> None:
    pod = VmPod.plan(daemon).run()
    running = pod.start(pod.container(busybox, name="running"))
    created = pod.create(pod.container(busybox, name="created"))
    for pid in victims(daemon):
        os.kill(pid, signal.SIGKILL)
    for id_ in (running, created):
        status = pod.wait(id_)
        if victims is monitors:
            assert (status.exit_code, status.reason) == (137, "VMDied")
        assert status.exit_code in (137, 255)
    eventually(lambda: not pod.ready())
    eventually(lambda: not _processes(daemon))
    with pytest.raises(grpc.RpcError):
        pod.exec(running, "true")
    pod.remove()


def test_a_pod_whose_monitor_dies_under_an_order_is_not_half_there(daemon: Daemon, busybox: str) -> None:
    for delay in _DELAYS:
        pod = VmPod.plan(daemon).run()

        def kill(after: float = delay) -> None:
            time.sleep(after)
            for pid in monitors(daemon):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with contextlib.suppress(grpc.RpcError):
            pod.start(pod.container(busybox))
        killer.join()
        eventually(lambda: not _processes(daemon))
        pod.remove()
        assert not daemon.left()


def test_forgeoned_killed_while_a_pod_is_made_leaves_nothing_that_nobody_knows(daemon: Daemon, busybox: str) -> None:
    for delay in _DELAYS:
        pod = VmPod.plan(daemon)

        def kill(after: float = delay) -> None:
            time.sleep(after)
            daemon.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with contextlib.suppress(grpc.RpcError):
            pod.run()
            pod.start(pod.container(busybox))
        killer.join()
        daemon.start()
        if delay == _DELAYS[0]:
            # Nobody comes back.
            daemon.remove_pods()
        else:
            # A kubelet's retry.
            pod.run()
            assert pod.exec(pod.start(pod.container(busybox, attempt=1)), "echo", "there").stdout == b"there\n"
            pod.remove()
        eventually(lambda: not _processes(daemon))
        eventually(lambda: not daemon.left())


def test_forgeoned_that_was_killed_finds_its_machines_again_whose_logs_went_on(daemon: Daemon, busybox: str) -> None:
    pod = VmPod.plan(daemon).run()
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
    id_ = pod.start(pod.container(busybox, "sh", "-c", script))

    def execute() -> None:
        with contextlib.suppress(grpc.RpcError):
            pod.exec(id_, "sleep", "77")

    running = threading.Thread(target=execute)
    running.start()
    eventually(lambda: b"sleep 77" in pod.exec(id_, "ps").stdout)
    before, log = _processes(daemon), Path(pod.status(id_).log_path)
    daemon.kill()
    running.join()
    last = log.stat().st_size
    eventually(lambda: log.stat().st_size > last)
    daemon.start()
    assert _processes(daemon) == before
    assert pod.ready()
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    # The command alone was killed with it.
    eventually(lambda: b"sleep 77" not in pod.exec(id_, "ps").stdout)
    last = log.stat().st_size
    eventually(lambda: log.stat().st_size > last)
    pod.remove()


def test_output_without_end_is_kept_within_the_logs_limit_and_can_be_ended(daemon: Daemon, busybox: str) -> None:
    pod = VmPod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, "sh", "-c", "yes & exec yes >&2"))
    other = pod.start(pod.container(busybox, name="other"))
    log = Path(pod.status(id_).log_path)
    eventually(lambda: log.stat().st_size > 1 << 20)
    assert pod.exec(other, "echo", "there").stdout == b"there\n"
    (keeper,) = keepers(daemon)
    private = sum(
        int(line.split()[1])
        for line in Path(f"/proc/{keeper}/smaps_rollup").read_text().splitlines()
        if line.startswith("Private_")
    )
    assert private < 16 << 10
    pod.stop_container(id_)
    assert pod.status(id_).exit_code == 137
    pod.remove()


def test_a_guest_whose_kernel_panics_takes_nobody_else_along(daemon: Daemon, busybox: str) -> None:
    other = VmPod.plan(daemon).run()
    kept = other.start(other.container(busybox))
    pod = VmPod.plan(daemon)
    pod.config.linux.security_context.privileged = True
    pod.run()
    config = pod.container(busybox, "sh", "-c", "echo about to; sleep 1; echo c > /proc/sysrq-trigger; sleep 9")
    config.linux.security_context.privileged = True
    id_ = pod.start(config)
    status = pod.wait(id_)
    assert (status.exit_code, status.reason) == (137, "VMDied")
    assert pod.log(id_) == "about to\n"
    eventually(lambda: not pod.ready())
    pod.remove()
    assert other.exec(kept, "echo", "there").stdout == b"there\n"
    other.remove()


def _memory_limit(pid: int) -> Path:
    """The file that limits the memory of a process's control group."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
    return Path(f"/sys/fs/cgroup{path}/memory.max")


def test_a_machine_that_is_killed_for_its_pods_memory_says_so(daemon: Daemon, busybox: str) -> None:
    others = set(keepers(daemon))
    pod = VmPod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, "sh", "-c", "sleep 1; head -c 90000000 /dev/zero > /dev/shm/x; sleep 1000"))
    (keeper,) = set(keepers(daemon)) - others
    limit = _memory_limit(keeper)
    used = limit.with_name("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
    limit.write_text(str(int(used.read_text()) + (16 << 20)))
    status = pod.wait(id_)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    pod.remove()
