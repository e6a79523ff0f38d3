"""Pause and resume, over the node's own service, of containers that count."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

COUNT = "trap 'echo asked; exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"


@pytest.fixture
def pod(fresh_forgeoned: Daemon, busybox: str) -> Iterator[Pod]:
    fresh_forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    running = Pod.plan(fresh_forgeoned).run()
    yield running
    running.remove()


def _node(pod: Pod) -> node_pb2_grpc.NodeStub:
    return node_pb2_grpc.NodeStub(pod.daemon.channel)


def _pause(pod: Pod, id_: str) -> None:
    _node(pod).PauseContainer(node_pb2.PauseContainerRequest(container_id=id_), timeout=patient(20))


def _resume(pod: Pod, id_: str) -> None:
    _node(pod).ResumeContainer(node_pb2.ResumeContainerRequest(container_id=id_), timeout=patient(20))


def _paused(pod: Pod) -> list[str]:
    return list(_node(pod).ListPausedContainers(node_pb2.ListPausedContainersRequest(), timeout=20).container_ids)


def _await_more(pod: Pod, id_: str) -> None:
    before, until = len(pod.log(id_)), time.monotonic() + patient(20)
    while len(pod.log(id_)) <= before:
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.01)


def _stands_still(pod: Pod, id_: str) -> None:
    before = pod.log(id_)
    time.sleep(0.1)
    # What it had written as it was frozen may have been on its way to the log.
    assert len(pod.log(id_).split()) <= len(before.split()) + 1


def test_a_pause_outlives_a_killed_forgeoned_and_ends_with_a_resume(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", COUNT))
    _await_more(pod, id_)
    _pause(pod, id_)
    _stands_still(pod, id_)
    pod.daemon.kill()
    pod.daemon.start()
    assert _paused(pod) == [id_]
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    _stands_still(pod, id_)
    with pytest.raises(grpc.RpcError) as refused:
        pod.exec(id_, "true")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    _resume(pod, id_)
    assert _paused(pod) == []
    _await_more(pod, id_)
    assert pod.exec(id_, "true").exit_code == 0


def test_a_paused_container_heeds_a_stop(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", COUNT))
    _await_more(pod, id_)
    _pause(pod, id_)
    pod.stop_container(id_, grace=20)
    assert pod.status(id_).exit_code == 9
    assert pod.log(id_).split()[-1] == "asked"


def test_a_paused_container_can_be_removed_with_its_pod(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", COUNT))
    _pause(pod, id_)
    pod.remove()
    assert not pod.daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
