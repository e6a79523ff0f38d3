"""``kill -9`` of forgeoned at random moments under load: nothing is lost, nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass, field

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30"))
WORKERS = 4


@dataclass
class Promise:
    """A container that CRI acknowledged as started, and how it must be found afterwards."""

    pod: Pod
    id: str
    exit_code: int | None
    stopped: bool = False


@dataclass
class Load:
    """Pods that start, run, exit and stop until the daemon is gone."""

    daemon: Daemon
    image: str
    kept: list[Promise] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        """One worker: ends with the daemon."""
        while not self.over.is_set():
            try:
                self._one()
            except (grpc.RpcError, ValueError, AssertionError):
                # The call was cut off by the kill; its pod is settled by asking again afterwards.
                self.over.wait(0.01)

    def _one(self) -> None:
        pod = Pod.plan(self.daemon)
        self.pods.append(pod)
        pod.run()
        kind = random.choice(("stays", "exits", "exits", "stopped"))
        if kind == "exits":
            code = random.randrange(100)
            command = ("sh", "-c", f"sleep 0.{random.randrange(5)}; echo done; exit {code}")
            self.kept.append(Promise(pod, pod.start(pod.container(self.image, *command)), code))
            return
        promise = Promise(pod, pod.start(pod.container(self.image)), None)
        self.kept.append(promise)
        if kind == "stopped":
            promise.exit_code = 137
            promise.stopped = True
            pod.stop_container(promise.id)


def test_kill_at_random_moments_loses_and_leaks_nothing(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    for number in range(ROUNDS):
        load = Load(daemon, busybox)
        workers = [threading.Thread(target=load.work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        time.sleep(random.uniform(0.05, 1.0))
        daemon.kill()
        load.over.set()
        for worker in workers:
            worker.join(60)
        time.sleep(random.choice((0, 0, 0.3)))  # containers go on, and end, while nobody looks
        daemon.start()
        _check_promises(load, number)
        _settle(load)
        left = daemon.left()
        assert not left, f"round {number} left:\n" + "\n".join(left)


def _check_promises(load: Load, number: int) -> None:
    listed = {c.id: c for c in load.daemon.runtime.ListContainers(pb.ListContainersRequest()).containers}
    for promise in load.kept:
        assert promise.id in listed, f"round {number}: a started container is lost"
        if promise.exit_code is None:
            assert listed[promise.id].state == pb.CONTAINER_RUNNING, f"round {number}"
            assert promise.pod.exec(promise.id, "true").exit_code == 0
        elif promise.stopped:
            # The stop may have been cut off before it was stored; asked again, it must end as it would have.
            promise.pod.stop_container(promise.id)
            assert promise.pod.status(promise.id).exit_code == 137, f"round {number}"
        else:
            status = promise.pod.wait(promise.id)
            assert status.exit_code == promise.exit_code, f"round {number}: {status}"
            assert promise.pod.log(promise.id) == "done\n"


def _settle(load: Load) -> None:
    """What a kubelet does with pods it no longer wants; first it repeats the calls that were cut off."""
    known = {pod.id for pod in load.daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items}
    for pod in load.pods:
        if not pod.id:
            with contextlib.suppress(grpc.RpcError):
                pod.run()
        if pod.id:
            pod.remove()
            known.discard(pod.id)
    assert not known, "sandboxes that nobody asked for"


def test_oom_and_exit_codes_of_the_time_without_a_daemon_are_known_afterwards(
    fresh_forgeoned: Daemon, busybox: str
) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    hungry = pod.container(busybox, "sh", "-c", "sleep 1; dd if=/dev/zero of=/dev/null bs=200M count=1", name="hungry")
    hungry.linux.resources.memory_limit_in_bytes = 16 << 20
    oom = pod.start(hungry)
    code = pod.start(pod.container(busybox, "sh", "-c", "sleep 1; exit 42", name="code"))
    daemon.kill()
    time.sleep(2.5)
    daemon.start()
    assert pod.wait(oom).reason == "OOMKilled"
    assert pod.wait(code).exit_code == 42
    pod.remove()


def test_a_graceful_stop_cut_off_by_a_kill_is_finished(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"))

    def stop() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError):
            pod.stop_container(id_, grace=3)

    stopping = threading.Thread(target=stop)
    stopping.start()
    time.sleep(0.5)
    daemon.kill()
    stopping.join(10)
    daemon.start()
    assert pod.wait(id_, seconds=10).exit_code == 137
    pod.remove()


@pytest.mark.parametrize("watched", [True, False], ids=["while forgeoned runs", "while it does not"])
def test_a_container_whose_supervisor_was_killed_is_ended(fresh_forgeoned: Daemon, busybox: str, watched: bool) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    id_, other = pod.start(pod.container(busybox)), pod.start(pod.container(busybox, name="other"))
    if not watched:
        daemon.kill()
    os.kill(_supervisor(id_), 9)
    if not watched:
        daemon.start()
    ended = pod.wait(id_)
    assert (ended.exit_code, ended.reason) == (255, "Error")
    assert "supervisor" in ended.message
    assert pod.status(other).state == pb.CONTAINER_RUNNING
    pod.remove()


@pytest.mark.parametrize("containers", [2, 0], ids=["with containers", "without"])
def test_a_pod_whose_init_was_killed_is_not_ready(fresh_forgeoned: Daemon, busybox: str, containers: int) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod, bystander = Pod.plan(daemon, pid=pb.POD).run(), Pod.plan(daemon, pid=pb.POD).run()
    for number in range(containers):
        pod.start(pod.container(busybox, name=f"c{number}"))
    bystander.start(bystander.container(busybox, "true"))
    os.kill(_init(pod.id), 9)
    if not containers:
        with pytest.raises(grpc.RpcError):
            pod.start(pod.container(busybox))
    until = time.monotonic() + 30
    while pod.ready():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert bystander.ready()
    for one in (pod, bystander):
        one.remove()


def _init(sandbox_id: str) -> int:
    namespace = os.stat(f"{_pinned(sandbox_id)}/pid").st_ino
    (found,) = (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _is_init(entry, namespace))
    return found


def _pinned(sandbox_id: str) -> str:
    with open("/proc/self/mountinfo") as file:
        (found,) = (line.split()[4] for line in file if line.split()[4].endswith(f"/sandboxes/{sandbox_id}/ns/pid"))
    return os.path.dirname(found)


def _is_init(pid: str, namespace: int) -> bool:
    try:
        if os.stat(f"/proc/{pid}/ns/pid").st_ino != namespace:
            return False
        with open(f"/proc/{pid}/status") as file:
            return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in file)
    except OSError:
        return False


def _supervisor(container_id: str) -> int:
    (found,) = (
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and _command(entry).startswith("conmon") and container_id in _command(entry)
    )
    return found


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = file.read().split(b"\0")
    except OSError:
        return ""
    return os.path.basename(argv[0].decode(errors="replace")) + " " + b" ".join(argv[1:]).decode(errors="replace")
