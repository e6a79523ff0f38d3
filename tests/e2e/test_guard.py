"""What contracts and policies deny, at each point of a life, on each engine; and that nothing of it is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.contract.facts import Point
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say, sleep
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

PREFIX = "zta.forgeone.dev/"
ENGINES = ("native", "wasm")
# One rule for all points: a pod says by its label where it is to be denied.
HOUSE = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: house}
spec:
  floor: true
  rules:
    - name: told
      at: [POINTS]
      expression: "!('deny' in pod.labels) || pod.labels['deny'] != point"
      message: the pod asked for it
""".replace("POINTS", ", ".join(Point))
STARTS = {Point.SANDBOX, Point.CREATE, Point.START, Point.RECOVER}


@dataclass
class Node:
    """A daemon with policies, and an image for each engine."""

    daemon: Daemon
    images: dict[str, str]

    def policy(self, name: str, text: str) -> None:
        """Write one, and have it read."""
        directory = Path(self.daemon.config.contract.policies_dir)
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.yaml").write_text(text)

    def reload(self) -> list[str]:
        """What changed."""
        node = node_pb2_grpc.NodeStub(self.daemon.channel)
        return list(node.Reload(node_pb2.ReloadRequest(), timeout=patient(30)).changed)

    def plan(self, engine: str = "native", deny: str = "", **contract: str) -> Pod:
        """A pod with a contract of these fields."""
        pod = (WasmPod if engine == "wasm" else Pod).plan(self.daemon)
        if deny:
            pod.config.labels["deny"] = deny
        pod.config.annotations.update({PREFIX + key: value for key, value in contract.items()})
        return pod

    def container(self, pod: Pod, engine: str = "native", **changes: str) -> pb.ContainerConfig:
        """One that sleeps."""
        return pod.container(self.images[engine], *(SLEEP if engine == "native" else ()), **changes)


@pytest.fixture(scope="module")
def node(forgeoned: Daemon, busybox: str, push: Push) -> Node:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    module = pull(forgeoned, push("sleeper:latest", image({"sleep.wasm": guest(say("up\n"), sleep(1000))})))
    made = Node(forgeoned, {"native": busybox, "wasm": module})
    made.policy("house", HOUSE)
    assert "policies" in made.reload()
    return made


@pytest.fixture(autouse=True)
def _(node: Node, nothing_left: None) -> Iterator[None]:
    """Whatever was denied, nothing of it is on the host afterwards."""
    yield
    node.daemon.remove_pods()


def refused(verb: Callable[[], object]) -> tuple[grpc.StatusCode | None, str]:
    """Code and details of the call's error; ``None`` where there was none."""
    try:
        verb()
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return None, ""


def denied(verb: Callable[[], object], rule: str, *, starts: bool) -> str:
    """The call was denied by that rule, with the code for its point; returns the audit entry's id."""
    code, text = refused(verb)
    assert code is (grpc.StatusCode.FAILED_PRECONDITION if starts else grpc.StatusCode.PERMISSION_DENIED), text
    found = re.fullmatch(rf"denied by {re.escape(rule)}: .* \[(audit:\d+)\].*", text, re.DOTALL)
    assert found, text
    return found[1]


def allowed(verb: Callable[[], object]) -> None:
    """Whatever became of the call, nobody denied it."""
    assert "denied by" not in refused(verb)[1]


def _sandbox(_node: Node, pod: Pod, _engine: str) -> Callable[[], object]:
    return pod.run


def _create(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    pod.run()
    return lambda: pod.create(node.container(pod, engine))


def _start(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    id_ = pod.run().create(node.container(pod, engine))
    return lambda: node.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(60))


def _running(node: Node, pod: Pod, engine: str) -> str:
    return pod.run().start(node.container(pod, engine))


def _exec(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    id_ = _running(node, pod, engine)
    return lambda: pod.exec(id_, "true")


def _attach(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    request = pb.AttachRequest(container_id=_running(node, pod, engine), stdout=True)
    return lambda: node.daemon.runtime.Attach(request, timeout=patient(30))


def _forward(node: Node, pod: Pod, _engine: str) -> Callable[[], object]:
    request = pb.PortForwardRequest(pod_sandbox_id=pod.run().id, port=[80])
    return lambda: node.daemon.runtime.PortForward(request, timeout=patient(30))


def _checkpoint(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    location = str(node.daemon.directory / "saved.tar")
    request = pb.CheckpointContainerRequest(container_id=_running(node, pod, engine), location=location, timeout=20)
    return lambda: node.daemon.runtime.CheckpointContainer(request, timeout=patient(30))


def _update(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20)
    request = pb.UpdateContainerResourcesRequest(container_id=_running(node, pod, engine), linux=limits)
    return lambda: node.daemon.runtime.UpdateContainerResources(request, timeout=patient(30))


def _resume(node: Node, pod: Pod, engine: str) -> Callable[[], object]:
    stub, id_ = node_pb2_grpc.NodeStub(node.daemon.channel), _running(node, pod, engine)
    stub.PauseContainer(node_pb2.PauseContainerRequest(container_id=id_), timeout=patient(20))
    return lambda: stub.ResumeContainer(node_pb2.ResumeContainerRequest(container_id=id_), timeout=patient(20))


VERBS = {
    Point.SANDBOX: _sandbox,
    Point.CREATE: _create,
    Point.START: _start,
    Point.EXEC: _exec,
    Point.ATTACH: _attach,
    Point.PORT_FORWARD: _forward,
    Point.CHECKPOINT: _checkpoint,
    Point.UPDATE: _update,
    Point.RESUME: _resume,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", VERBS)
def test_a_policy_denies_at_each_point_and_at_no_other(node: Node, point: Point, engine: str) -> None:
    verb = VERBS[point](node, node.plan(engine, deny=point), engine)
    first = denied(verb, "house/told", starts=point in STARTS)
    # A kubelet tries again and again: each answer has an entry of its own.
    assert denied(verb, "house/told", starts=point in STARTS) != first
    allowed(VERBS[point](node, node.plan(engine), engine))
