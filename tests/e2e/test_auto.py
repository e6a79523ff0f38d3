"""Pods that leave their engine to the node: what they get, what is told of it, and what they never get."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.config.loader import to_toml
from forgeone_shim.config.model import SchedulerConfig
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.conftest import Push, running_daemon
from tests.e2e.pods import Pod
from tests.e2e.test_audit import events
from tests.e2e.wasm_pods import image

pytestmark = pytest.mark.root

PREFIX = "zta.forgeone.dev/"
UNTRUSTED = {f"{PREFIX}trust_label": "untrusted"}
NO_MACHINES = {"microvm.qemu": "/nonexistent/qemu", "scheduler.isolate_labels": ("untrusted",)}
GENTLE = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: not-native}
spec:
  floor: true
  namespaces: [picky]
  rules:
    - name: elsewhere
      at: [sandbox]
      expression: runtime.engine != 'native'
"""


@dataclass
class AutoPod(Pod):
    """A pod of the handler that chooses."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    handler: str = "forgeone-auto"

    def run(self, timeout: float = 60) -> AutoPod:
        self.config.annotations.update(self.annotations)
        request = pb.RunPodSandboxRequest(config=self.config, runtime_handler=self.handler)
        self.id = self.daemon.runtime.RunPodSandbox(request, timeout=patient(timeout)).pod_sandbox_id
        return self


def auto(daemon: Daemon, annotations: Mapping[str, str] | None = None, namespace: str = "tests") -> AutoPod:
    pod = AutoPod(daemon, Pod.plan(daemon).config, annotations=annotations or {})
    pod.config.metadata.namespace = namespace
    return pod


def told(pod: Pod) -> tuple[str, str]:
    """The engine and the reason, of a verbose status."""
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
    info = json.loads(pod.daemon.runtime.PodSandboxStatus(request, timeout=patient(10)).info["info"])
    return info["engine"], info.get("placed", "")


def inspected(daemon: Daemon, id_: str) -> dict[str, object]:
    stub = node_pb2_grpc.NodeStub(daemon.channel)
    found: dict[str, object] = json.loads(stub.Inspect(node_pb2.InspectRequest(id=id_), timeout=patient(10)).document)
    return found


def denial(pod: Pod) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        pod.run()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(caught.value.details())


@pytest.fixture(scope="module")
def node(registry: Registry) -> Iterator[Daemon]:
    """One whose host has no QEMU."""
    with running_daemon(registry, NO_MACHINES) as daemon:
        directory = Path(daemon.config.contract.policies_dir)
        directory.mkdir(exist_ok=True)
        (directory / "not-native.yaml").write_text(GENTLE)
        stub = node_pb2_grpc.NodeStub(daemon.channel)
        stub.Reload(node_pb2.ReloadRequest(), timeout=patient(10))
        yield daemon


@pytest.fixture(scope="module")
def module_image(node: Daemon, push: Push) -> str:
    name = push("auto-module:1", image({"app.wasm": guest(say("from a module\n"))}))
    wanted = pb.ImageSpec(image=name, runtime_handler="forgeone-auto")
    node.images.PullImage(pb.PullImageRequest(image=wanted), timeout=patient(60))
    return name


@pytest.fixture(scope="module")
def program(node: Daemon, busybox: str) -> str:
    node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    return busybox


def engine_of(pod: Pod, container_id: str) -> object:
    engine = inspected(pod.daemon, container_id)["engine"]
    assert isinstance(engine, dict)
    return engine["name"]


def _options(pod: Pod, how: str) -> None:
    options = pod.config.linux.security_context.namespace_options
    if how == "shared processes":
        options.pid = pb.POD
    elif how == "user namespace":
        options.userns_options.mode = pb.POD
        options.userns_options.uids.add(host_id=65536 * 9, container_id=0, length=65536)
        options.userns_options.gids.add(host_id=65536 * 9, container_id=0, length=65536)


@pytest.mark.parametrize("how", ["plain", "shared processes", "user namespace"])
def test_programs_and_modules_of_one_pod_are_run_by_what_runs_them(
    node: Daemon, program: str, module_image: str, how: str
) -> None:
    pod = auto(node)
    _options(pod, how)
    pod.run()
    configs = [pod.container(module_image, name="module"), pod.container(program)]
    del configs[0].command[:]
    for config in configs:
        config.linux.security_context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
    module, main = map(pod.start, configs)
    assert pod.wait(module).exit_code == 0
    assert pod.log(module) == "from a module\n"
    assert (engine_of(pod, module), engine_of(pod, main)) == ("wasm", "native")
    assert told(pod) == ("native", "first in scheduler.order")
    pod.remove()


def test_a_contract_may_keep_engines_from_mixing(node: Daemon, program: str, module_image: str) -> None:
    pod = auto(node, {f"{PREFIX}mixed_engines": "false"}).run()
    pod.start(pod.container(program))
    config = pod.container(module_image, name="module")
    del config.command[:]
    with pytest.raises(grpc.RpcError, match=r"profile\.mixed_engines"):
        pod.create(config)
    pod.remove()


def test_what_a_pod_says_of_itself_chooses(node: Daemon, module_image: str) -> None:
    demanded = auto(node, {f"{PREFIX}exec_mode": "wasm"}).run()
    assert told(demanded) == ("wasm", "the contract demands wasm (exec_mode)")
    hinted = auto(node, {"run.oci.handler": "wasm"}).run()
    assert told(hinted) == ("wasm", "it says that it has WebAssembly (run.oci.handler)")
    for pod in (demanded, hinted):
        pod.remove()


def test_a_rule_that_denies_an_engine_leaves_the_next(node: Daemon) -> None:
    pod = auto(node, namespace="picky").run()
    assert told(pod)[0] == "wasm"
    pod.remove()
    assert "not-native/elsewhere" in denial(auto(node, {f"{PREFIX}exec_mode": "native"}, namespace="picky"))


@pytest.mark.parametrize("annotations", [UNTRUSTED, {f"{PREFIX}exec_mode": "microvm"}])
def test_isolation_that_cannot_be_had_is_denied_and_nothing_is_left(
    node: Daemon, annotations: dict[str, str], nothing_left_of: None
) -> None:
    said = denial(auto(node, annotations))
    assert said.startswith("denied by scheduler: ")
    assert "demands microvm" in said
    assert "qemu" in said
    assert "[audit:" in said


@pytest.fixture
def nothing_left_of(node: Daemon) -> Iterator[None]:
    before = node.left()
    yield
    assert node.left(expected=before) == before


def test_a_label_does_not_give_way_to_what_the_pod_asks_for(node: Daemon) -> None:
    said = denial(auto(node, {**UNTRUSTED, f"{PREFIX}exec_mode": "native"}))
    assert "'untrusted' demands microvm" in said
    assert "the contract demands native" in said


def test_the_choice_and_its_reason_outlive_forgeoned_and_are_in_the_audit_log(node: Daemon, program: str) -> None:
    pod = auto(node).run()
    id_ = pod.start(pod.container(program))
    before = told(pod)
    node.kill()
    node.start()
    assert told(pod) == before == ("native", "first in scheduler.order")
    assert inspected(node, pod.id)["placed"] == before[1]
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    placed = [one.data for one in events(node, pod.id) if one.type.endswith("sandbox.placed")]
    assert [(one["engine"], one["reason"]) for one in placed] == [before]
    pod.remove()


def test_the_handler_is_listed_with_what_all_its_engines_can_do(node: Daemon) -> None:
    status = node.runtime.Status(pb.StatusRequest(), timeout=patient(10))
    known = {one.name: one.features for one in status.runtime_handlers}
    # Without QEMU these two are all that it has.
    both = known["forgeone-native"], known["forgeone-wasm"]
    assert known["forgeone-auto"].user_namespaces is all(one.user_namespaces for one in both)
    assert known["forgeone-auto"].recursive_read_only_mounts is all(one.recursive_read_only_mounts for one in both)


def test_a_machine_that_is_demanded_is_had(machines: Daemon) -> None:
    isolated = auto(machines, {f"{PREFIX}exec_mode": "microvm"}).run(timeout=120)
    assert told(isolated) == ("microvm", "the contract demands microvm (exec_mode)")
    isolated.remove()


def test_a_label_that_is_isolated_from_now_on_ends_what_runs_without(registry: Registry, busybox: str) -> None:
    with running_daemon(registry, {"microvm.qemu": "/nonexistent/qemu"}) as daemon:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
        pods = auto(daemon, UNTRUSTED).run(), auto(daemon).run()
        ids = [pod.start(pod.container(busybox)) for pod in pods]
        isolating = replace(daemon.config, scheduler=SchedulerConfig(isolate_labels=("untrusted",)))
        daemon.config_file.write_text(to_toml(isolating))
        node_pb2_grpc.NodeStub(daemon.channel).Reload(node_pb2.ReloadRequest(), timeout=patient(10))
        assert pods[0].wait(ids[0]).exit_code == 137
        assert "trust label 'untrusted' demands microvm" in pods[0].status(ids[0]).message
        assert pods[1].status(ids[1]).state == pb.CONTAINER_RUNNING
        with pytest.raises(grpc.RpcError, match=r"denied by scheduler: .* the engine chosen for the pod is native"):
            pods[0].create(pods[0].container(busybox, name="again"))
        for pod in pods:
            pod.remove()
