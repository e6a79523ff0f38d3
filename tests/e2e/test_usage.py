"""What pods use and what happens to them, as a kubelet is told."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import islice

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)
BUSY = ("sh", "-c", "dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null; sleep 1000 & while :; do :; done")


@pytest.fixture
def pod(forgeoned: Daemon, busybox: str, nothing_left: None) -> Iterator[Pod]:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(forgeoned).run()
    yield pod
    pod.remove()


def busy(pod: Pod, image: str) -> str:
    """A container that has written 8 MiB, has used some processor time and runs two processes."""
    config = pod.container(image, *BUSY)
    config.linux.resources.CopyFrom(
        pb.LinuxContainerResources(cpu_period=100000, cpu_quota=20000, memory_limit_in_bytes=64 << 20)
    )
    id_ = pod.start(config)
    until = time.monotonic() + patient(20)
    while stats(pod, id_).cpu.usage_core_nano_seconds.value < 100_000_000 and time.monotonic() < until:
        time.sleep(0.05)
    return id_


def stats(pod: Pod, id_: str) -> pb.ContainerStats:
    return pod.daemon.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=id_), timeout=10).stats


def pod_stats(pod: Pod) -> pb.PodSandboxStats:
    return pod.daemon.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod.id), timeout=10).stats


def test_a_containers_usage(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, *BUSY))
    pod.exec(id_, "sh", "-c", "until [ $(wc -c </written) = 8388608 ]; do :; done")
    first = stats(pod, id_)
    assert first.writable_layer.used_bytes.value >= 8 << 20
    assert first.writable_layer.inodes_used.value >= 1
    assert 0 < first.memory.working_set_bytes.value <= first.memory.usage_bytes.value
    time.sleep(1.2)
    second = stats(pod, id_)
    used = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    elapsed = second.cpu.timestamp - first.cpu.timestamp
    assert 0 < used <= 2 * elapsed
    assert second.cpu.usage_nano_cores.value > 0
    pod.stop_container(id_)
    listed = pod.daemon.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
    assert id_ not in [one.attributes.id for one in listed]


def test_a_pods_usage_is_that_of_its_containers_and_its_network(pod: Pod, busybox: str) -> None:
    empty = pod_stats(pod).linux
    assert empty.network.default_interface.name == "eth0"
    assert empty.process.process_count.value == 0
    id_ = busy(pod, busybox)
    gateway = re.search(r"default via (\S+)", pod.output(busybox, "ip", "route"))
    assert gateway is not None
    pod.output(busybox, "sh", "-c", f"ping -c 2 -i 0.2 {gateway[1]} >/dev/null || nc -w 1 {gateway[1]} 9 || true")
    found = pod_stats(pod).linux
    assert found.cpu.usage_core_nano_seconds.value >= 100_000_000
    assert found.network.default_interface.tx_bytes.value > empty.network.default_interface.tx_bytes.value
    assert [one.attributes.id for one in found.containers] == [id_]
    assert found.process.process_count.value == 2
    listed = pod.daemon.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
    assert pod.id in [one.attributes.id for one in listed]


def test_metrics_are_those_of_the_descriptors(pod: Pod, busybox: str) -> None:
    id_ = busy(pod, busybox)
    descriptors = pod.daemon.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest()).descriptors
    labels = {one.name: len(one.label_keys) for one in descriptors}
    assert len(labels) == 58
    until, throttled = time.monotonic() + patient(20), "container_cpu_cfs_throttled_periods_total"
    values: dict[str, int] = {}
    # What it has to do before it is busy takes a while, and may leave time in every period.
    while not (values.get(throttled) and values["container_processes"] == 2) and time.monotonic() < until:
        answer = pod.daemon.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())
        [of_pod] = [one for one in answer.pod_metrics if one.pod_sandbox_id == pod.id]
        [of_container] = of_pod.container_metrics
        assert of_container.container_id == id_
        found = [*of_pod.metrics, *of_container.metrics]
        assert all(len(one.label_values) == labels[one.name] for one in found)
        values = {one.name: one.value.value for one in found}
    assert values["container_processes"] == 2
    assert values["container_spec_cpu_quota"] == 20000
    assert values["container_spec_memory_limit_bytes"] == 64 << 20
    assert values[throttled] > 0
    assert values["container_file_descriptors"] > 0
    assert values["container_forgeone_entropy_bits"] == 256 and values["container_forgeone_trust_score"] > 0
    assert values["container_start_time_seconds"] <= values["container_last_seen"]
    # Devices and huge pages are not everywhere, nor is pressure.
    spared = re.compile("container_(blkio|fs_reads|fs_writes|hugetlb|pressure|spec_.*(shares|swap|reservation))")
    assert [name for name in labels if name not in values and not spared.match(name)] == []


def test_events_tell_a_pods_life_and_its_state(forgeoned: Daemon, busybox: str, nothing_left: None) -> None:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    heard = forgeoned.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=60)
    heard.initial_metadata()
    pod = Pod.plan(forgeoned).run()
    killed = pod.start(pod.container(busybox, name="killed"))
    ended = pod.start(pod.container(busybox, "sh", "-c", "exit 3", name="ended"))
    pod.wait(ended)
    pod.remove()
    expected = {
        pod.id: [CREATED, STARTED, STOPPED, DELETED],
        killed: [CREATED, STARTED, STOPPED, DELETED],
        ended: [CREATED, STARTED, STOPPED, DELETED],
    }
    # What pods before this one did may come first: nobody had listened.
    events = list(islice((event for event in heard if event.container_id in expected), 12))
    heard.cancel()
    told = {id_: [e.container_event_type for e in events if e.container_id == id_] for id_ in expected}
    assert told == expected
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)
    assert all(event.pod_sandbox_status.metadata.uid == pod.config.metadata.uid for event in events)
    [end] = [e for e in events if (e.container_id, e.container_event_type) == (ended, STOPPED)]
    [status] = [one for one in end.containers_statuses if one.id == ended]
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 3)
    assert events[-1].container_id == pod.id
    assert (events[-1].pod_sandbox_status.state, len(events[-1].containers_statuses)) == (pb.SANDBOX_NOTREADY, 0)


def test_a_kill_for_want_of_memory_is_told(pod: Pod, push: Push) -> None:
    image = push("busybox:latest", images.busybox())
    heard = pod.daemon.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=60)
    heard.initial_metadata()
    config = pod.container(image, "sh", "-c", "a=x; while :; do a=$a$a; done", name="hungry")
    config.linux.resources.memory_limit_in_bytes = 32 << 20
    id_ = pod.start(config)
    for event in heard:
        if (event.container_id, event.container_event_type) == (id_, STOPPED):
            break
    [status] = [one for one in event.containers_statuses if one.id == id_]
    assert status.reason == "OOMKilled"
    heard.cancel()


def test_a_listener_is_told_when_forgeoned_ends(fresh_forgeoned: Daemon) -> None:
    heard = fresh_forgeoned.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=60)
    heard.initial_metadata()
    began = time.monotonic()
    assert fresh_forgeoned.stop() == 0
    with pytest.raises(grpc.RpcError):
        next(heard)
    assert time.monotonic() - began < 20


def test_a_listener_that_comes_back_has_missed_nothing(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)

    def listen() -> grpc.Call:
        stream = daemon.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=patient(30))
        stream.initial_metadata()
        return stream

    stream = listen()
    pod = Pod.plan(daemon).run()
    first = pod.start(pod.container(busybox, "sh", "-c", "exit 3", name="first"))
    assert next(event for event in stream if event.container_id == pod.id).container_event_type == CREATED
    stream.cancel()
    time.sleep(0.5)  # until forgeoned knows that it has gone
    # As a kubelet does: it lists, and only then listens again.
    pod.wait(first)
    second = pod.start(pod.container(busybox, "sh", "-c", "exit 4", name="second"))
    pod.wait(second)
    stream = listen()
    told = list(islice((event for event in stream if event.container_id == second), 3))
    assert [event.container_event_type for event in told] == [CREATED, STARTED, STOPPED]
    # What ends while there is no forgeoned is told by the next one, to whom listens soon.
    third = pod.start(pod.container(busybox, "sleep", "0.5", name="third"))
    daemon.kill()
    time.sleep(1)
    daemon.start()
    pod.wait(third)
    stream = listen()
    end = next(event for event in stream if event.container_id == third)
    assert (end.container_event_type, end.created_at > told[-1].created_at) == (STOPPED, True)
    stream.cancel()
    pod.remove()
