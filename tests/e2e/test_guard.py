"""What contracts and policies deny, at each point of a life, on each engine; and that nothing of it is left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from engines.base import Security
from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cli import main as cli
from forgeone_shim.contract.facts import Point
from forgeone_shim.contract.model import PAYLOAD_TYPE
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from forgeone_shim.runtime import checkpoint_files as files
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say, sleep
from hack.lab.registry import Registry
from hack.lab.settings import patient
from hack.lab.signatures import Signer
from tests.e2e.conftest import Push
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.streams import SocketClient, SpdyClient
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


def test_a_denial_is_in_the_log_before_anybody_is_told_of_it(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    pod = node.plan(deny=Point.EXEC)
    exec_it = _exec(node, pod, "native")
    entry = denied(exec_it, "house/told", starts=False)
    node.daemon.kill()
    try:
        where = ["--config", str(node.daemon.config_file)]
        assert cli.main(["audit", "verify", *where]) == 0
        capsys.readouterr()
        assert cli.main(["audit", "tail", "-o", "json", "-n", "1", *where]) == 0
        (line,) = capsys.readouterr().out.splitlines()
    finally:
        node.daemon.start()
    found = json.loads(line)
    assert (f"audit:{found['id']}", found["type"]) == (entry, "dev.forgeone.denied")
    told = found["data"]
    assert (told["point"], told["rule"], told["reason"]) == ("exec", "house/told", "the pod asked for it")
    assert told["pod"]["name"] == pod.config.metadata.name
    assert told["container"]["name"] == "main"


def _privileged(pod: Pod, container: pb.ContainerConfig) -> None:
    pod.config.linux.security_context.privileged = container.linux.security_context.privileged = True


def _host_network(pod: Pod, container: pb.ContainerConfig) -> None:
    for context in (pod.config.linux.security_context, container.linux.security_context):
        context.namespace_options.network = pb.NODE


def _host_pid(pod: Pod, container: pb.ContainerConfig) -> None:
    for context in (pod.config.linux.security_context, container.linux.security_context):
        context.namespace_options.pid = pb.NODE


def _host_ipc(pod: Pod, container: pb.ContainerConfig) -> None:
    for context in (pod.config.linux.security_context, container.linux.security_context):
        context.namespace_options.ipc = pb.NODE


def _half_a_processor(_pod: Pod, container: pb.ContainerConfig) -> None:
    container.linux.resources.cpu_period, container.linux.resources.cpu_quota = 100_000, 50_000


def _mounts_etc(_pod: Pod, container: pb.ContainerConfig) -> None:
    container.mounts.add(host_path="/etc", container_path="/host", readonly=True)


def _adds(_pod: Pod, container: pb.ContainerConfig) -> None:
    container.linux.security_context.capabilities.add_capabilities.append("SYS_TIME")


def _unlimited(_pod: Pod, _container: pb.ContainerConfig) -> None:
    """As it is."""


def _too_much(_pod: Pod, container: pb.ContainerConfig) -> None:
    container.linux.resources.memory_limit_in_bytes = 128 << 20


BASIC = "CHOWN,DAC_OVERRIDE,FSETID,FOWNER,MKNOD,NET_RAW,SETGID,SETUID,SETFCAP,SETPCAP,NET_BIND_SERVICE,SYS_CHROOT,KILL"
FIELDS = [
    ({"privileged": "false"}, _privileged, "profile.privileged", ENGINES),
    ({"host_network": "false"}, _host_network, "profile.host_network", ENGINES),
    ({"host_pid": "false"}, _host_pid, "profile.host_pid", ENGINES),
    ({"host_ipc": "false"}, _host_ipc, "profile.host_ipc", ENGINES),
    ({"host_paths": "/srv"}, _mounts_etc, "profile.host_paths", ENGINES),
    ({"host_paths": "/srv,/etc:ro"}, _mounts_etc, "", ENGINES),
    ({"volumes": "config-map"}, _mounts_etc, "profile.volumes", ENGINES),
    ({"capabilities": f"{BASIC},AUDIT_WRITE"}, _adds, "profile.capabilities", ("native",)),
    ({"capabilities": f"{BASIC},AUDIT_WRITE"}, _unlimited, "", ENGINES),
    ({"capabilities": "none"}, _unlimited, "profile.capabilities", ("native",)),
    ({"memory": "64Mi"}, _unlimited, "profile.resources.memory", ENGINES),
    ({"memory": "64Mi"}, _too_much, "profile.resources.memory", ENGINES),
    ({"memory": "128Mi"}, _too_much, "", ENGINES),
    ({"cpu": "500m"}, _unlimited, "profile.resources.cpu", ENGINES),
    ({"cpu": "499m"}, _half_a_processor, "profile.resources.cpu", ENGINES),
    ({"cpu": "500m"}, _half_a_processor, "", ENGINES),
    ({"pids": "64"}, _unlimited, "", ENGINES),
    ({"images": "**@sha256:" + "0" * 64}, _unlimited, "profile.images", ENGINES),
    ({"images": "ghcr.io/**"}, _unlimited, "profile.images", ENGINES),
    ({"images": "127.0.0.1:*/**"}, _unlimited, "", ENGINES),
    ({"trusted_issuers": "key:sha256:" + "0" * 64}, _unlimited, "trusted_issuers", ENGINES),
    ({"exec_mode": "microvm"}, _unlimited, "exec_mode", ENGINES),
    ({"exec_mode": "wasm"}, _unlimited, "exec_mode", ("native",)),
    ({"exec_mode": "wasm"}, _unlimited, "", ("wasm",)),
    ({"minimum_entropy": "256"}, _unlimited, "", ENGINES),
    ({"minimum_entropy": "257"}, _unlimited, "minimum_entropy", ENGINES),
]


@pytest.mark.parametrize(
    ("contract", "change", "rule", "engine"),
    [(fields, change, rule, engine) for fields, change, rule, engines in FIELDS for engine in engines],
)
def test_what_a_contract_takes_away_no_pod_gets(
    node: Node,
    contract: dict[str, str],
    change: Callable[[Pod, pb.ContainerConfig], None],
    rule: str,
    engine: str,
) -> None:
    pod = node.plan(engine, **contract)
    container = node.container(pod, engine)
    change(pod, container)

    def life() -> None:
        pod.run().start(container)

    if rule:
        denied(life, rule, starts=True)
    else:
        life()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("verb", ["exec", "attach", "port_forward", "checkpoint", "update"])
def test_what_may_not_be_done_to_a_container_is_not(node: Node, verb: str, engine: str) -> None:
    made = VERBS[Point(verb.replace("_", "-"))](node, node.plan(engine, **{verb: "false"}), engine)
    denied(made, f"rbac.{verb}", starts=False)


def test_a_ceiling_holds_for_updates_too(node: Node) -> None:
    pod = node.plan(memory="64Mi")
    container = node.container(pod)
    container.linux.resources.memory_limit_in_bytes = 32 << 20
    id_ = pod.run().start(container)

    def limit(mebibytes: int) -> None:
        limits = pb.LinuxContainerResources(memory_limit_in_bytes=mebibytes << 20)
        request = pb.UpdateContainerResourcesRequest(container_id=id_, linux=limits)
        node.daemon.runtime.UpdateContainerResources(request, timeout=patient(30))

    limit(64)
    denied(lambda: limit(65), "profile.resources.memory", starts=False)
    assert pod.status(id_).resources.linux.memory_limit_in_bytes == 64 << 20


def test_a_contract_that_cannot_be_read_is_denied_with_its_field(node: Node) -> None:
    code, text = refused(node.plan(minimum_entropy="lots").run)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "minimum_entropy" in text
    assert "audit:" in text
    assert "minimum_entropi" in refused(node.plan(minimum_entropi="1").run)[1]
    pod = node.plan().run()
    container = node.container(pod)
    # Nobody but a CRI client could write it there, and it would be without effect.
    container.annotations[PREFIX + "exec"] = "false"
    assert "audit:" in refused(lambda: pod.create(container))[1]


def test_a_contract_may_be_for_one_container_alone(node: Node) -> None:
    pod = node.plan(**{"exec.quiet": "false"}).run()
    loud, quiet = (pod.start(node.container(pod, name=name)) for name in ("loud", "quiet"))
    assert pod.exec(loud, "true").exit_code == 0
    denied(lambda: pod.exec(quiet, "true"), "rbac.exec", starts=False)


def test_a_pod_of_one_engine_gets_no_container_of_another(node: Node) -> None:
    for mixed, rule in (("true", ""), ("false", "profile.mixed_engines")):
        pod = node.plan("wasm", mixed_engines=mixed).run()
        pod.start(node.container(pod, "wasm"))
        beside = pod.container(node.images["native"], *SLEEP, name="beside")
        if rule:
            denied(lambda pod=pod, beside=beside: pod.create(beside), rule, starts=True)
        else:
            pod.start(beside)


def test_an_image_volume_is_held_to_the_same_rules(node: Node, push: Push) -> None:
    other = push("library/data:1", images.build([images.layer([images.Entry("file", b"x", 0o644)])], {}))
    node.daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=other)), timeout=patient(60))
    pod = node.plan(images="127.0.0.1:*/busybox").run()
    container = node.container(pod)
    pod.create(container)
    container = node.container(pod, name="other")
    mount = container.mounts.add(container_path="/data", readonly=True, image=pb.ImageSpec(image=other))
    denied(lambda: pod.create(container), "profile.images", starts=True)
    # As a kubelet names it: by what it was resolved to, with the pod's own words beside that.
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=other))
    mount.image.image = node.daemon.images.ImageStatus(request, timeout=patient(30)).image.id
    mount.image.user_specified_image = other
    denied(lambda: pod.create(container), "profile.images", starts=True)
    pod = node.plan(images="127.0.0.1:*/busybox,127.0.0.1:*/library/data").run()
    pod.create(container)


def test_a_retry_of_what_was_allowed_is_not_asked_about_again(node: Node) -> None:
    pod = node.plan()
    first = pod.run().id
    container = node.container(pod)
    made = pod.create(container)
    node.policy("later", HOUSE.replace("name: house", "name: later").replace("!('deny' in pod.labels) ||", "false &&"))
    try:
        assert node.reload() == ["policies"]
        assert pod.run().id == first
        assert pod.create(container) == made
        denied(node.plan().run, "later/told", starts=True)
    finally:
        Path(node.daemon.config.contract.policies_dir, "later.yaml").unlink()
        node.reload()


@contextmanager
def _also(node: Node, text: str) -> Iterator[None]:
    """With one more policy."""
    node.policy("also", text)
    try:
        node.reload()
        yield
    finally:
        Path(node.daemon.config.contract.policies_dir, "also.yaml").unlink()
        node.reload()


ALSO = HOUSE.replace("name: house", "name: also")


def test_a_session_is_asked_about_once_more_when_it_begins(node: Node) -> None:
    id_ = _running(node, node.plan(), "native")
    request = pb.ExecRequest(container_id=id_, cmd=["echo", "done"], stdout=True)
    url = node.daemon.runtime.Exec(request, timeout=patient(30)).url
    rule = ALSO.replace("!('deny' in pod.labels) || pod.labels['deny'] != point", "point != 'exec'")
    with _also(node, rule), SocketClient(url, "v4.channel.k8s.io") as client:
        client.rest()
    assert b"denied by also/told" in client.heard[3]
    assert client.heard[1] == b""


def test_a_port_is_asked_about_when_it_is_connected_to(node: Node) -> None:
    pod = node.plan().run()
    rule = ALSO.replace(
        "!('deny' in pod.labels) || pod.labels['deny'] != point",
        "point != 'port-forward' || request.ports.all(port, port == 8099)",
    )
    with _also(node, rule.replace("at: [", "at: [port-forward] # ")):
        named = pb.PortForwardRequest(pod_sandbox_id=pod.id, port=[22])
        denied(lambda: node.daemon.runtime.PortForward(named, timeout=patient(30)), "also/told", starts=False)
        # kubectl names its ports only when it connects.
        url = node.daemon.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=pod.id), timeout=patient(30)).url
        with SpdyClient(url, "portforward.k8s.io") as client:
            heard = {}
            for request, port in enumerate((22, 8099)):
                headers = {"port": str(port), "requestID": str(request)}
                error, data = (client.open(streamType=kind, **headers) for kind in ("error", "data"))
                client.until(lambda error=error, data=data: {error, data} <= client.ended)
                heard[port] = client.heard[error]
    assert b"denied by also/told" in heard[22]
    assert b"ECONNREFUSED" in heard[8099] or b"refused" in heard[8099]


def _ends(pod: Pod, id_: str) -> None:
    status = pod.wait(id_)
    assert (status.reason, status.exit_code) == ("Denied", 137)
    assert re.fullmatch(r"denied by late/told: .* \[audit:\d+\].*", status.message)


LATE = (
    HOUSE.replace("name: house", "name: late")
    .replace("'deny' in pod.labels", "'late' in pod.labels")
    .replace("pod.labels['deny'] != point", "point != 'recover'")
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["reload", "restart"])
def test_what_runs_is_judged_again_and_stopped_where_it_is_denied(node: Node, engine: str, how: str) -> None:
    doomed, other = node.plan(engine), node.plan(engine)
    doomed.config.labels["late"] = "yes"
    denied_one, other_one = (pod.run().start(node.container(pod, engine)) for pod in (doomed, other))
    waiting = doomed.create(node.container(doomed, engine, name="waiting"))
    node.policy("late", LATE)
    try:
        if how == "reload":
            node.reload()
        else:
            node.daemon.kill()
            node.daemon.start()
        _ends(doomed, denied_one)
        # What was not started yet is judged when it is to be.
        assert doomed.status(waiting).state == pb.CONTAINER_CREATED
        assert other.status(other_one).state == pb.CONTAINER_RUNNING
    finally:
        Path(node.daemon.config.contract.policies_dir, "late.yaml").unlink()
        node.reload()


def test_a_long_grace_period_is_no_way_around_a_policy_that_came_later(node: Node) -> None:
    pod = node.plan()
    pod.config.labels["late"] = "yes"
    # As the first process of its namespace it does not heed SIGTERM.
    id_ = pod.run().start(node.container(pod))
    stopping = node.daemon.runtime.StopContainer.future(
        pb.StopContainerRequest(container_id=id_, timeout=3600), timeout=patient(60)
    )
    stub, asked = node_pb2_grpc.NodeStub(node.daemon.channel), node_pb2.InspectRequest(id=id_)
    until = time.monotonic() + patient(10)
    while json.loads(stub.Inspect(asked, timeout=patient(30)).document)["lifecycle"]["state"] != "stopping":
        assert time.monotonic() < until
    with _also(node, LATE):
        _ends(pod, id_)
        stopping.result()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_that_may_not_go_on_after_a_pause_has_no_grace_period_to_go_on_in(node: Node, engine: str) -> None:
    pod = node.plan(engine, deny=Point.RESUME)
    denied(_resume(node, pod, engine), "house/told", starts=False)
    every = pb.ContainerFilter(pod_sandbox_id=pod.id)
    (id_,) = [one.id for one in pod.daemon.runtime.ListContainers(pb.ListContainersRequest(filter=every)).containers]
    pod.daemon.runtime.StopContainer(pb.StopContainerRequest(container_id=id_, timeout=3600), timeout=patient(60))
    assert pod.status(id_).exit_code == 137


def test_a_policy_that_cannot_be_used_changes_nothing_and_starts_nothing(node: Node) -> None:
    node.policy("bad", "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: bad}\nspec: {flor: true}\n")
    path = Path(node.daemon.config.contract.policies_dir, "bad.yaml")
    try:
        code, text = refused(node.reload)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "bad.yaml" in text
        assert "flor" in text
        denied(node.plan(deny="sandbox").run, "house/told", starts=True)
        node.daemon.stop()
        with pytest.raises(RuntimeError, match=r"bad\.yaml"):
            node.daemon.start()
    finally:
        path.unlink()
        node.daemon.start()
    denied(node.plan(deny="sandbox").run, "house/told", starts=True)


def test_a_pod_is_not_made_from_a_checkpoint_where_that_is_denied(node: Node) -> None:
    listed = node.daemon.images.ListImages(pb.ListImagesRequest()).images
    image_id = next(one.id for one in listed if node.images["native"] in one.repo_tags)
    directory = node.daemon.directory / "checkpoint"
    (directory / files.CONTAINERS / "0" / files.IMAGES).mkdir(parents=True)
    (directory / files.CONTAINERS / "0" / files.DIFF).write_bytes(b"")
    container = node.container(node.plan())
    saved = files.SavedContainer(
        name="main",
        directory="0",
        image_id=image_id,
        args=SLEEP,
        cwd="/",
        uid=0,
        gid=0,
        groups=(),
        confined=files.confinement(Security()),
    )
    files.write_pod(
        directory, files.SavedPod(format=files.FORMAT, engine="native", name="p", namespace="n", containers=(saved,))
    )
    for pod, rule in (
        (node.plan(deny=Point.RESTORE), "house/told"),
        (node.plan(snapshot="false"), "profile.snapshot"),
    ):
        request = pb.RestorePodRequest(checkpoint_path=str(directory), config=pod.config, container_configs=[container])
        denied(lambda request=request: node.daemon.runtime.RestorePod(request, timeout=patient(60)), rule, starts=False)
    assert not node.daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items


def test_a_signed_contract_asks_for_a_signed_image(
    daemon_factory: Callable[..., Daemon], registry: Registry, push: Push, tmp_path: Path
) -> None:
    built, signer, issuer, stranger = images.busybox(), Signer(), SigningKey.generate(), SigningKey.generate()
    reference = push("trusted/app:1", built)
    signer.sign(registry.address, "trusted/app", built.digest)
    (tmp_path / "signer.pub").write_bytes(signer.pem)
    signed = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "signer.pub")}
    identity = {"signedIdentity": {"type": "matchRepository"}}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {registry.address: [signed | identity]}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    daemon = daemon_factory({"signatures.policy": str(tmp_path / "policy.json")})
    made = Node(daemon, {"native": reference})
    issuers = Path(daemon.config.contract.issuers_dir)
    issuers.mkdir()
    (issuers / "issuer.pub").write_bytes(issuer.public.pem())
    made.policy("house", HOUSE.replace("floor: true", "floor: true\n  requireSignedContract: true"))
    made.reload()
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=reference)), timeout=patient(60))

    def life(contract: dict[str, object], by: SigningKey) -> Callable[[], object]:
        envelope = dsse.Envelope(PAYLOAD_TYPE, json.dumps(contract).encode())
        pod = made.plan(contract=dsse.encode(dsse.sign(envelope, by)).decode())
        return lambda: pod.run().start(made.container(pod))

    wanted: dict[str, object] = {"trusted_issuers": [signer.id], "minimum_entropy": 128}
    life(wanted, issuer)()
    denied(life(wanted, stranger), "house/requireSignedContract", starts=True)
    denied(life({"trusted_issuers": [f"key:sha256:{'0' * 64}"]}, issuer), "trusted_issuers", starts=True)
    denied(made.plan(trusted_issuers=signer.id).run, "house/requireSignedContract", starts=True)


@pytest.mark.parametrize("denied_by", ["contract", "policy"])
def test_who_may_not_execute_commands_may_not_share_processes(node: Node, denied_by: str) -> None:
    """As `kubectl debug --target` does, with a container whose own contract says nothing."""
    contract = {"exec.web": "false"} if denied_by == "contract" else {}
    pod = node.plan(deny="exec" if denied_by == "policy" else "", **contract).run()
    web, debug = node.container(pod), node.container(pod)
    web.metadata.name, debug.metadata.name = "web", "debug"
    id_ = pod.start(web)
    options = debug.linux.security_context.namespace_options
    options.pid, options.target_id = pb.TARGET, id_
    rule = "rbac.exec" if denied_by == "contract" else "house/told"
    denied(lambda: pod.create(debug), rule, starts=False)
    options.pid, options.target_id = pb.CONTAINER, ""
    pod.start(debug)
