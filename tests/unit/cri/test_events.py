"""GetContainerEvents over the socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.unit.cri.conftest import Node, container_config, pod_config
from tests.unit.cri.fakes import EVENTS, FakeRuntime

CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)

Listen = Callable[[], grpc.Call]


@pytest.fixture
def listen(node: Node) -> Iterator[Listen]:
    calls: list[grpc.Call] = []

    def begin() -> grpc.Call:
        call = RuntimeServiceStub(node.channel()).GetContainerEvents(pb.GetEventsRequest(), timeout=30)
        call.initial_metadata()  # comes once nothing is missed any more
        calls.append(call)
        return call

    yield begin
    for call in calls:
        call.cancel()


def run(cri: RuntimeServiceStub, images: ImageServiceStub) -> tuple[str, str]:
    images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    pod = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=pod_config())).pod_sandbox_id
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container_config(), sandbox_config=pod_config())
    return pod, cri.CreateContainer(request).container_id


def test_the_life_of_a_pod_is_told_in_order(cri: RuntimeServiceStub, images: ImageServiceStub, listen: Listen) -> None:
    heard = listen()
    pod, container = run(cri, images)
    cri.StartContainer(pb.StartContainerRequest(container_id=container))
    cri.StopContainer(pb.StopContainerRequest(container_id=container))
    cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    events = list(islice(heard, 6))
    assert [(event.container_id, event.container_event_type) for event in events] == [
        (pod, CREATED),
        (pod, STARTED),
        (container, CREATED),
        (container, STARTED),
        (container, STOPPED),
        (container, DELETED),
    ]
    assert {event.pod_sandbox_status.metadata.uid for event in events} == {"uid-web"}
    assert [[one.state for one in event.containers_statuses] for event in events] == [
        [],
        [],
        [pb.CONTAINER_CREATED],
        [pb.CONTAINER_RUNNING],
        [pb.CONTAINER_EXITED],
        [],
    ]
    times = [event.created_at for event in events]
    assert times == sorted(times)


def test_a_client_that_does_not_read_is_told_that_it_missed_something(
    cri: RuntimeServiceStub, images: ImageServiceStub, node: Node, runtime: FakeRuntime
) -> None:
    feed = runtime.listen()
    for _ in range(EVENTS + 1):
        pod, _container = run(cri, images)
        cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    runtime.listen = lambda: feed  # type: ignore[method-assign]
    call = RuntimeServiceStub(node.channel()).GetContainerEvents(pb.GetEventsRequest(), timeout=30)
    heard = []
    with pytest.raises(grpc.RpcError) as caught:
        heard.extend(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "list pods and containers" in caught.value.details()


def test_clients_that_left_hold_no_thread(listen: Listen, cri: RuntimeServiceStub) -> None:
    before = threading.active_count()
    # Three times as many as the server has threads.
    for _ in range(24):
        listen().cancel()
    assert cri.Version(pb.VersionRequest(), timeout=10).runtime_name == "forgeone"
    assert threading.active_count() < before + 24


def test_a_pods_status_has_its_containers_and_a_time(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    pod, container = run(cri, images)
    answer = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert [(one.id, one.state) for one in answer.containers_statuses] == [(container, pb.CONTAINER_CREATED)]
    assert answer.timestamp >= answer.containers_statuses[0].created_at
