"""A forgeoned that runs for long, is drained, stopped in the middle of calls, or finds its state damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import threading
import time
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.runtime import runtime
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

STUBBORN = ("sh", "-c", "trap '' TERM; while :; do sleep 1; done")


def pulled(daemon: Daemon, image: str) -> Daemon:
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=60)
    return daemon


def test_pods_that_come_and_go_leave_no_descriptor_thread_or_memory(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = pulled(fresh_forgeoned, busybox)

    def cycle(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            pod = Pod.plan(daemon).run()
            id_ = pod.start(pod.container(busybox))
            pod.exec(id_, "true")
            pod.remove()
        return _used(daemon.pid)

    before = cycle(10)
    after = cycle(60)
    assert after[0] <= before[0] + 2, "descriptors"
    assert after[1] <= before[1] + 4, "threads"
    assert after[2] <= before[2] + 4096, "KiB"


def _used(pid: int) -> tuple[int, int, int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0])


def test_a_node_being_drained_still_answers(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = pulled(fresh_forgeoned, busybox)
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, *STUBBORN))
    request = pb.StopContainerRequest(container_id=id_, timeout=int(patient(4)))
    # Far more calls that wait for a grace period than a node has pods.
    calls = [daemon.runtime.StopContainer.future(request, timeout=patient(60)) for _ in range(200)]
    time.sleep(0.5)
    for _ in range(5):
        daemon.runtime.Version(pb.VersionRequest(), timeout=patient(1))
        daemon.runtime.ListContainers(pb.ListContainersRequest(), timeout=patient(1))
    assert not any(call.done() for call in calls)
    for call in calls:
        call.result()
    assert pod.status(id_).exit_code == 137
    pod.remove()


def test_told_to_stop_it_ends_in_the_middle_of_calls_and_pods_go_on(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = pulled(fresh_forgeoned, busybox)
    pod = Pod.plan(daemon).run()
    stays = pod.start(pod.container(busybox))
    stopping = pod.start(pod.container(busybox, *STUBBORN, name="stubborn"))

    def stop() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError):
            pod.stop_container(stopping, grace=12)

    caller = threading.Thread(target=stop)
    caller.start()
    time.sleep(0.3)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    caller.join(30)
    daemon.start()
    assert pod.exec(stays, "true").exit_code == 0
    assert pod.status(stopping).state == pb.CONTAINER_RUNNING
    # Told to stop again while the grace period that it inherited is under way.
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 5
    daemon.start()
    assert pod.wait(stopping, seconds=20).exit_code == 137
    pod.remove()


def test_a_stop_whose_caller_has_gone_kills_when_the_grace_period_is_over(
    fresh_forgeoned: Daemon, busybox: str
) -> None:
    daemon = pulled(fresh_forgeoned, busybox)
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, *STUBBORN))
    with pytest.raises(grpc.RpcError):
        daemon.runtime.StopContainer(pb.StopContainerRequest(container_id=id_, timeout=2), timeout=0.3)
    time.sleep(0.7)
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    assert pod.wait(id_, seconds=10).exit_code == 137
    pod.remove()


@pytest.mark.parametrize("kind", ["container", "sandbox"])
def test_a_record_that_cannot_be_read_holds_up_nothing_and_leaves_nothing(
    fresh_forgeoned: Daemon, busybox: str, kind: str
) -> None:
    daemon = pulled(fresh_forgeoned, busybox)
    pod, other = Pod.plan(daemon).run(), Pod.plan(daemon, pid=pb.POD).run()
    kept = pod.start(pod.container(busybox))
    lost = other.start(other.container(busybox))
    daemon.stop()
    with contextlib.closing(sqlite3.connect(Path(daemon.config.root, "forgeone.db"))) as database:
        key = lost if kind == "container" else other.id
        changed = database.execute("UPDATE docs SET doc='{\"id\": 3}' WHERE kind=? AND key=?", (kind, key))
        assert changed.rowcount == 1
        database.commit()
    daemon.start()
    assert pod.exec(kept, "true").exit_code == 0
    if kind == "container":
        with pytest.raises(grpc.RpcError):
            other.status(lost)
    else:
        daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=lost), timeout=30)
    assert "unreadable document set aside" in daemon.log.read_text()


@pytest.mark.parametrize("shared", ["root", "state"])
def test_a_second_forgeoned_on_the_same_directory_waits_and_gives_up(
    fresh_forgeoned: Daemon, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_LOCK_PATIENCE", 0.2)
    mine = {name: str(fresh_forgeoned.directory / f"{name}2") for name in ("root", "state")}
    mine[shared] = getattr(fresh_forgeoned.config, shared)
    with pytest.raises(FailedPrecondition, match="held by another forgeoned"):
        runtime.Runtime.open(dataclasses.replace(fresh_forgeoned.config, **mine))
