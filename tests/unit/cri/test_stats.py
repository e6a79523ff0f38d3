"""Stats and metrics over the socket."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.unit.cri.conftest import container_config, pod_config


def run(cri: RuntimeServiceStub, images: ImageServiceStub, name: str = "web", **fields: object) -> tuple[str, str]:
    images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    config = pod_config(name, **fields)
    pod = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container_config(), sandbox_config=config)
    container = cri.CreateContainer(request).container_id
    cri.StartContainer(pb.StartContainerRequest(container_id=container))
    return pod, container


def test_a_containers_stats_have_its_layer_and_its_rate(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    _, container = run(cri, images)
    stats = cri.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    layer = stats.writable_layer
    assert (layer.fs_id.mountpoint, layer.used_bytes.value, layer.inodes_used.value, layer.timestamp) == (
        "/root",
        30,
        3,
        4,
    )
    assert stats.cpu.usage_nano_cores.value == 250


def test_a_pods_stats(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    pod, container = run(cri, images)
    stats = cri.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats
    assert (stats.attributes.id, stats.attributes.metadata.uid) == (pod, "uid-web")
    linux = stats.linux
    assert (linux.cpu.timestamp, linux.cpu.usage_core_nano_seconds.value) == (6, 9)
    assert not linux.cpu.HasField("usage_nano_cores")
    assert not linux.HasField("io")
    assert linux.process.process_count.value == 2
    default = linux.network.default_interface
    assert (default.name, default.rx_bytes.value, default.rx_errors.value) == ("eth0", 1, 3)
    assert (default.tx_bytes.value, default.tx_errors.value) == (5, 7)
    assert [one.name for one in linux.network.interfaces] == ["net1"]
    assert [one.attributes.id for one in linux.containers] == [container]


def test_pods_stats_are_listed_by_every_filter(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    web, _ = run(cri, images)
    db, _ = run(cri, images, "db", labels={"app": "db"})
    gone, _ = run(cri, images, "gone")
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=gone))

    def ids(**wanted: object) -> list[str]:
        request = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(**wanted))  # type: ignore[arg-type]
        return [stats.attributes.id for stats in cri.ListPodSandboxStats(request).stats]

    assert ids() == [web, db]
    assert ids(id=db[:4]) == [db]
    assert ids(label_selector={"app": "db"}) == [db]
    streamed = cri.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest())
    assert [stats.attributes.id for piece in streamed for stats in piece.pod_sandbox_stats] == [web, db]


def test_metrics_are_labelled_as_their_descriptors_say(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    pod, container = run(cri, images)
    descriptors = cri.ListMetricDescriptors(pb.ListMetricDescriptorsRequest()).descriptors
    keys = {one.name: list(one.label_keys) for one in descriptors}
    assert len(keys) == 58
    assert all(one.help for one in descriptors)
    [found] = cri.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest()).pod_metrics
    [received], [of_container] = found.metrics, found.container_metrics
    assert (found.pod_sandbox_id, of_container.container_id) == (pod, container)
    assert dict(zip(keys[received.name], received.label_values, strict=True)) == {
        "container": "",
        "id": "/pods",
        "image": "",
        "name": "",
        "namespace": "default",
        "pod": "web",
        "interface": "eth0",
    }
    assert (received.metric_type, received.value.value, received.timestamp) == (pb.COUNTER, 4, 7)
    [processes] = of_container.metrics
    assert (processes.name, processes.metric_type, processes.value.value) == ("container_processes", pb.GAUGE, 3)
    labels = dict(zip(keys[processes.name], processes.label_values, strict=True))
    assert (labels["container"], labels["id"], labels["name"]) == ("app", "/pods/container", container)
    streamed = cri.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())
    assert [one.pod_sandbox_id for piece in streamed for one in piece.pod_sandbox_metrics] == [pod]
