"""What Prometheus reads of a node that runs pods, through restarts and kills."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from cri.api import runtime_pb2 as pb
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.conftest import running_daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

Values = dict[tuple[tuple[str, str], ...], float]
FLOOR = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: house}
spec:
  floor: true
  rules: [{name: told, at: [create], expression: "!('deny' in pod.labels)", message: the pod asked for it}]
"""


class Node:
    """A daemon with metrics, and what it tells."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self.daemon, self.port = daemon, port

    def read(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=patient(20)) as answer:
            return str(answer.read().decode())

    def values(self, name: str, path: str = "/metrics") -> Values:
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in parsed(self.read(path))
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def node(registry: Registry, free_port: int, busybox: str) -> Iterator[Node]:
    with running_daemon(registry, {"metrics.address": f"127.0.0.1:{free_port}"}) as daemon:
        policies = Path(daemon.config.contract.policies_dir)
        policies.mkdir(exist_ok=True)
        (policies / "house.yaml").write_text(FLOOR)
        node_pb2_grpc.NodeStub(daemon.channel).Reload(node_pb2.ReloadRequest(), timeout=patient(30))
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
        yield Node(daemon, free_port)


def until(told: Callable[[], object], wanted: object) -> None:
    """An end is told when its exit file has been read."""
    end = time.monotonic() + patient(10)
    while told() != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert told() == wanted


def test_pods_calls_ends_and_denials_are_counted(node: Node, busybox: str) -> None:
    pod = Pod.plan(node.daemon).run()
    running = pod.start(pod.container(busybox))
    pod.start(pod.container(busybox, "sh", "-c", "exit 3", name="ends"))
    denied = Pod.plan(node.daemon)
    denied.config.labels["deny"] = "create"
    denied.run()
    with pytest.raises(grpc.RpcError, match="denied by house/told"):
        denied.create(denied.container(busybox))

    assert node.values("forgeone_pods") == {(("handler", "default"), ("ready", "true")): 2}
    until(lambda: node.values("forgeone_container_exits_total"), {(("engine", "native"), ("reason", "Error")): 1})
    assert node.values("forgeone_containers")[("engine", "native"), ("state", "running")] == 1
    assert node.values("forgeone_denials_total") == {(("point", "create"), ("rule", "house/told")): 1}
    calls = node.values("forgeone_cri_requests_total")
    assert calls[("code", "OK"), ("method", "RunPodSandbox")] == 2
    assert calls[("code", "FAILED_PRECONDITION"), ("method", "CreateContainer")] == 1
    assert set(node.values("forgeone_condition").values()) == {1}
    assert node.values("forgeone_images") == {(): 1}

    used = node.values("container_memory_usage_bytes", "/metrics/containers")
    [(labels, memory)] = used.items()
    assert dict(labels)["name"] == running and dict(labels)["pod"] == pod.config.metadata.name
    assert memory > 10_000
    received = node.values("container_network_receive_bytes_total", "/metrics/containers")
    assert {dict(one)["pod"] for one in received} == {pod.config.metadata.name, denied.config.metadata.name}
    pod.remove()
    denied.remove()
    assert node.values("forgeone_pods") == {}


def test_a_killed_forgeoned_leaves_the_port_to_the_next(node: Node) -> None:
    before = node.values("process_start_time_seconds")
    node.daemon.kill()
    with pytest.raises(OSError, match="refused"):
        node.read()
    node.daemon.start()
    assert node.values("process_start_time_seconds") != before
