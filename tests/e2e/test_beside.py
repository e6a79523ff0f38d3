"""Beside a containerd: pods of both on one socket, with Debian's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError, run

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api import runtime_pb2_grpc as cri_grpc
from hack.lab import containerd, images
from hack.lab.containerd import Containerd
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e import microvm_pods, wasm_pods
from tests.e2e.conftest import Push, running_daemon
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.streams import SpdyClient, eventually
from tests.e2e.test_audit import events

pytestmark = pytest.mark.root

NATIVE = "forgeone-native"
SECONDS = patient(60)


@dataclass
class AnyPod(Pod):
    """A pod of any handler."""

    handler: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    def run(self, timeout: float = 60) -> AnyPod:
        """RunPodSandbox."""
        self.config.annotations.update(self.annotations)
        request = pb.RunPodSandboxRequest(config=self.config, runtime_handler=self.handler)
        self.id = self.daemon.runtime.RunPodSandbox(request, timeout=patient(timeout)).pod_sandbox_id
        return self

    def pull(self, image: str) -> str:
        """PullImage for this pod, as a kubelet does it; the image's id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image), sandbox_config=self.config)
        return str(self.daemon.images.PullImage(request, timeout=SECONDS).image_ref)


def pod(daemon: Daemon, handler: str = "", **annotations: str) -> AnyPod:
    return AnyPod(daemon, Pod.plan(daemon).config, handler=handler, annotations=annotations)


@pytest.fixture(scope="module")
def other(registry: Registry, push: Push, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    if why := containerd.missing():
        pytest.skip(why)
    directory = tmp_path_factory.mktemp("containerd")
    certs = directory / "certs.d"
    (certs / registry.address).mkdir(parents=True)
    (certs / registry.address / "hosts.toml").write_text(f'server = "http://{registry.address}"\n')
    pause = push("pause:1", images.busybox(("sleep", "1000000")))
    running = Containerd(directory / "containerd", pause=pause, certs=str(certs))
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def node(registry: Registry, other: Containerd) -> Iterator[Daemon]:
    with running_daemon(registry, {"upstream.socket": other.socket}) as daemon:
        yield daemon


def direct(other: Containerd) -> cri_grpc.RuntimeServiceStub:
    return cri_grpc.RuntimeServiceStub(grpc.insecure_channel(f"unix://{other.socket}"))


def listed(node: Daemon) -> set[str]:
    return {one.id for one in node.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=SECONDS).items}


def forge(node: Daemon, *words: str) -> str:
    argv = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", node.socket, *words]
    return run(argv, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


def streamed(node: Daemon, container_id: str, *command: str) -> bytes:
    """What a command prints, by the URL that Exec answers with."""
    request = pb.ExecRequest(container_id=container_id, cmd=command, stdout=True)
    url = node.runtime.Exec(request, timeout=SECONDS).url
    with SpdyClient(url, "v4.channel.k8s.io") as client:
        client.open(streamtype="error")
        out = client.open(streamtype="stdout")
        client.until(lambda: out in client.ended)
        return client.heard[out]


def test_a_pod_of_containerd_and_one_of_each_engine_live_on_one_socket(
    node: Daemon, other: Containerd, busybox: str, push: Push
) -> None:
    handlers = {"": busybox, "runc": busybox, NATIVE: busybox}
    handlers["forgeone-wasm"] = push("upstream-module:1", wasm_pods.image({"a.wasm": guest(say("module\n"))}))
    pods, containers = {}, {}
    for handler, image in handlers.items():
        pods[handler] = one = pod(node, handler).run()
        config = one.container(one.pull(image), "sh", "-c", f"echo 'of {handler}'; sleep 1000")
        if handler == "forgeone-wasm":
            del config.command[:]
        containers[handler] = one.start(config)
    theirs = {one.id for one in direct(other).ListPodSandbox(pb.ListPodSandboxRequest(), timeout=SECONDS).items}
    assert theirs == {pods[""].id, pods["runc"].id}
    assert listed(node) == {one.id for one in pods.values()}
    found = node.runtime.ListContainers(pb.ListContainersRequest(), timeout=SECONDS).containers
    assert {one.id for one in found} == set(containers.values())
    # This containerd has no streamed lists.
    pieces = node.runtime.StreamContainers(pb.StreamContainersRequest(), timeout=SECONDS)
    assert {one.id for piece in pieces for one in piece.containers} == set(containers.values())
    for handler, id_ in containers.items():
        one = pods[handler]
        if handler == "forgeone-wasm":
            assert one.wait(id_).exit_code == 0
            assert one.log(id_) == "module\n"
            continue
        eventually(lambda one=one, id_=id_, handler=handler: one.log(id_) == f"of {handler}\n", 30)
        assert one.exec(id_, "echo", "now").stdout == b"now\n"
        assert streamed(node, id_, "echo", "streamed") == b"streamed\n"
    usage = node.runtime.ListContainerStats(pb.ListContainerStatsRequest(), timeout=SECONDS).stats
    assert {one.attributes.id for one in usage} == set(containers.values()) - {containers["forgeone-wasm"]}
    lines = forge(node, "pods").splitlines()
    engines = {line.split()[0]: line.split()[-1] for line in lines[1:]}
    assert engines[pods[""].id[:13]] == "containerd"
    assert engines[pods[NATIVE].id[:13]] == "native"
    told = [(one.subject, one.data["handler"]) for one in events(node) if one.type.endswith("sandbox.forwarded")]
    assert told == [(f"sandbox/{pods[handler].id}", handler) for handler in ("", "runc")]
    forge(node, "rm", "--all", "--force")
    assert listed(node) == theirs
    for one in pods.values():
        one.remove()
    assert listed(node) == set()


def test_a_node_says_what_both_can_do(node: Daemon, other: Containerd) -> None:
    status = node.runtime.Status(pb.StatusRequest(), timeout=SECONDS)
    assert {one.type: one.status for one in status.status.conditions}["RuntimeReady"]
    assert {"forgeone-native", "forgeone-wasm"} <= {one.name for one in status.runtime_handlers}
    assert node.runtime.Version(pb.VersionRequest(), timeout=SECONDS).runtime_name == "forgeone"
    assert forge(node, "version").splitlines()[-1].startswith("upstream containerd ")
    [space] = node.images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=SECONDS).image_filesystems
    assert other.directory.as_posix() in space.fs_id.mountpoint


def test_an_image_is_in_the_store_of_the_pod_that_it_was_pulled_for(node: Daemon, push: Push) -> None:
    image = push("upstream-image:1", images.busybox(("sleep", "17")))
    ours, theirs = pod(node, NATIVE, of="ours").run(), pod(node, of="theirs").run()
    theirs.pull(image)

    def look(of: str) -> str:
        spec = pb.ImageSpec(image=image, annotations={"of": of})
        return str(node.images.ImageStatus(pb.ImageStatusRequest(image=spec), timeout=SECONDS).image.id)

    id_ = look("theirs")
    assert id_
    assert look("ours") == ""
    with pytest.raises(grpc.RpcError) as raised:
        ours.start(ours.container(id_, *SLEEP))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert ours.pull(image) == id_
    assert look("ours") == id_
    one = ours.start(ours.container(id_, *SLEEP))
    assert ours.status(one).image_id == id_
    [entry] = [line for line in forge(node, "images").splitlines() if "upstream-image" in line]
    assert "forgeone, containerd" in entry
    ours.remove()
    theirs.remove()
    node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=id_)), timeout=SECONDS)
    assert (look("ours"), look("theirs")) == ("", "")


def test_a_contract_is_not_taken_where_nobody_keeps_it(node: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        pod(node, "runc", **{"zta.forgeone.dev/exec_mode": "native"}).run()
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "zta.forgeone.dev/exec_mode" in raised.value.details()
    assert "'runc'" in raised.value.details()
    assert [one.data["rule"] for one in events(node) if one.type.endswith("denied")] == ["upstream/contract"]
    assert listed(node) == set()


def test_a_node_may_keep_pods_under_a_floor_from_the_other_runtime(node: Daemon) -> None:
    text, directory = node.config_file.read_text(), Path(node.config.contract.policies_dir)
    directory.mkdir(parents=True, exist_ok=True)
    floor = directory / "everybody.yaml"
    floor.write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: everybody}\n"
        "spec: {floor: true, contract: {rbac: {exec: false}}}\n"
    )
    try:
        node.config_file.write_text(text.replace('policies = "ignore"', 'policies = "deny"'))
        assert "upstream.policies" in forge(node, "reload")
        with pytest.raises(grpc.RpcError) as raised:
            pod(node).run()
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "'everybody'" in raised.value.details()
        pod(node, NATIVE).run().remove()
    finally:
        floor.unlink()
        node.config_file.write_text(text)
        forge(node, "reload")


def test_pods_outlive_either_runtime_and_no_list_lacks_any(node: Daemon, other: Containerd, busybox: str) -> None:
    ours, theirs = pod(node, NATIVE).run(), pod(node).run()
    mine = ours.start(ours.container(ours.pull(busybox), *SLEEP))
    left = theirs.start(theirs.container(theirs.pull(busybox), *SLEEP))
    other.kill()
    with pytest.raises(grpc.RpcError) as raised:
        listed(node)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    status = node.runtime.Status(pb.StatusRequest(), timeout=SECONDS)
    ready = next(one for one in status.status.conditions if one.type == "RuntimeReady")
    assert (ready.status, ready.reason) == (False, "UpstreamUnavailable")
    assert ours.exec(mine, "echo", "on").stdout == b"on\n"
    assert ours.ready()
    assert forge(node, "exec", mine[:13], "echo", "by forge") == "by forge\n"
    other.start()

    def back() -> bool:
        try:
            return listed(node) == {ours.id, theirs.id}
        except grpc.RpcError:
            return False

    eventually(back, 30)
    assert theirs.status(left).state == pb.CONTAINER_RUNNING
    node.kill()
    node.start()
    assert listed(node) == {ours.id, theirs.id}
    assert theirs.exec(left, "echo", "on").stdout == b"on\n"
    assert ours.status(mine).state == pb.CONTAINER_RUNNING
    ours.remove()
    theirs.remove()


def test_a_runtime_without_events_has_a_kubelet_list_instead(node: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        list(node.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=SECONDS))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_reload_lets_the_other_runtime_go_once_it_has_no_pods_and_takes_it_again(
    node: Daemon, other: Containerd
) -> None:
    theirs = pod(node).run()
    text = node.config_file.read_text()
    try:
        node.config_file.write_text(text.replace(f'socket = "{other.socket}"', 'socket = ""'))
        with pytest.raises(CalledProcessError) as raised:
            forge(node, "reload")
        assert theirs.id[:13] in raised.value.stderr
        assert listed(node) == {theirs.id}
        theirs.remove()
        assert "upstream.socket" in forge(node, "reload")
        with pytest.raises(grpc.RpcError):
            pod(node, "runc").run()
    finally:
        node.config_file.write_text(text)
    assert "upstream.socket" in forge(node, "reload")
    theirs = pod(node, "runc").run()
    assert listed(node) == {theirs.id}
    theirs.remove()


def test_a_machine_and_a_pod_of_containerd_live_on_one_socket(
    machines: Daemon, other: Containerd, busybox: str
) -> None:
    text = machines.config_file.read_text()
    try:
        machines.config_file.write_text(
            text.replace('[upstream]\nsocket = ""', f'[upstream]\nsocket = "{other.socket}"')
        )
        assert "upstream.socket" in forge(machines, "reload")
        theirs, machine = pod(machines).run(), pod(machines, microvm_pods.HANDLER).run(microvm_pods.SLOW)
        for one in (theirs, machine):
            id_ = one.start(one.container(one.pull(busybox), *SLEEP))
            assert one.exec(id_, "echo", "now").stdout == b"now\n"
            assert streamed(machines, id_, "echo", "streamed") == b"streamed\n"
        assert listed(machines) == {theirs.id, machine.id}
        for one in (theirs, machine):
            one.remove()
    finally:
        machines.config_file.write_text(text)
        forge(machines, "reload")
