"""Pods with network rules in their contracts, over CRI: on both engines and both networks, across restarts."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.kernel import namespaces
from forgeone_shim.network.ruleset import TABLE
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say, sleep
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.network_lab import in_parallel, ip, nft
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.streams import SocketClient
from tests.e2e.test_cni import free_port
from tests.e2e.wasm_pods import WasmPod, image, processes, pull

pytestmark = pytest.mark.root

PREFIX = "zta.forgeone.dev/"
SERVE = ("httpd", "-f", "-p", "80", "-h", "/etc")
FLOOR = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: closed}
spec:
  floor: true
  contract: {profile: {network: {egress: [any udp]}}}
"""


def plan(daemon: Daemon, *, engine: str = "native", name: str = "", **contract: str) -> Pod:
    """A pod with a contract of these fields."""
    pod = (WasmPod if engine == "wasm" else Pod).plan(daemon)
    pod.config.metadata.name = name or pod.config.metadata.name
    pod.config.annotations.update({PREFIX + key: value for key, value in contract.items()})
    return pod


def server(daemon: Daemon, busybox: str, *, name: str = "", **contract: str) -> Pod:
    """A running pod with files on port 80."""
    pod = plan(daemon, name=name, **contract).run()
    pod.start(pod.container(busybox, *SERVE))
    until(lambda: connects(netns(pod), "127.0.0.1"))
    return pod


def info(pod: Pod) -> dict[str, Any]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
    said = pod.daemon.runtime.PodSandboxStatus(request, timeout=patient(30)).info["info"]
    return msgspec.json.decode(said, type=dict[str, Any])


def netns(pod: Pod) -> str:
    return str(info(pod)["networkNamespace"])


def ips(pod: Pod) -> list[str]:
    return list(info(pod)["ips"])


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + patient(seconds)
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def connects(netns: str | None, address: str, *, port: int = 80, seconds: float = 0.4) -> bool:
    """Whether a port of the address can be reached from a namespace (``None``: the host's)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def make() -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM)

    with make() if netns is None else namespaces.run_in(netns, make) as client, suppress(OSError):
        client.settimeout(patient(seconds))
        client.connect((address, port))
        return True
    return False


def reaches(pod: Pod, other: Pod) -> bool:
    """Whether every address of the other pod can be reached. The first packet of a new pod may be lost."""
    return all(in_parallel([partial(connects, netns(pod), address, seconds=3) for address in ips(other)]))


def is_kept_from(pod: Pod, other: Pod) -> bool:
    """Whether no address of the other pod can be reached."""
    return not any(in_parallel([partial(connects, netns(pod), address) for address in ips(other)]))


def get(pod: Pod, container: str, other: Pod) -> pb.ExecSyncResponse:
    """A file of another pod, as a program in the container sees it."""
    ask = f"printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {ips(other)[0]} 80"
    return pod.exec(container, "sh", "-c", ask)


def refused(verb: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as failed:
        verb()
    return f"{failed.value.code().name} {failed.value.details()}"


@pytest.fixture
def removed(forgeoned: Daemon, nothing_left: None) -> Iterator[None]:
    yield
    forgeoned.remove_pods()


@pytest.fixture(scope="module")
def sleeper(forgeoned: Daemon, busybox: str, push: Push) -> dict[str, str]:
    """An image for each engine."""
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    module = pull(forgeoned, push("netsleeper:latest", image({"sleep.wasm": guest(say("up\n"), sleep(1000))})))
    return {"native": busybox, "wasm": module}


@pytest.mark.parametrize("engine", ["native", "wasm"])
def test_a_pod_is_kept_to_its_contract_before_it_is_ready(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None, engine: str
) -> None:
    db = server(forgeoned, sleeper["native"], name="db")
    web = server(forgeoned, sleeper["native"])
    app = plan(forgeoned, engine=engine, egress="pod:tests/db tcp/80", ingress="none").run()
    assert reaches(app, db)
    assert is_kept_from(app, web)
    id_ = app.start(app.container(sleeper[engine], *(SLEEP if engine == "native" else ())))
    if engine == "native":
        assert b"tester" in get(app, id_, db).stdout
        assert get(app, id_, web).exit_code
    else:
        (guest_pid,) = processes(id_, "forgeone-wasm")
        assert Path(f"/proc/{guest_pid}/ns/net").samefile(netns(app))
    assert info(app)["refused"]["egress"]["packets"] >= 2
    # What the contract does not speak of stays open, and the node may probe.
    assert "refused" not in info(web)
    assert connects(None, ips(web)[0], seconds=3)


def test_rules_follow_pods_of_a_namespace_as_they_come_and_go(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    app = plan(forgeoned, egress="pod:tests/*").run()
    db = server(forgeoned, sleeper["native"])
    theirs = ips(db)
    assert reaches(app, db)
    db.remove()
    listed = namespaces.run_in(netns(app), lambda: nft("list", "table", "inet", TABLE))
    assert not any(f" {address} " in listed or f" {address}," in listed for address in theirs)


def test_rules_and_what_they_counted_survive_the_daemon(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    db = server(forgeoned, sleeper["native"], name="db2", ingress="pod:tests/app2 tcp/80")
    app = plan(forgeoned, name="app2", egress="pod:tests/db2 tcp/80").run()
    other = plan(forgeoned).run()
    assert reaches(app, db)
    assert is_kept_from(other, db)
    assert is_kept_from(app, other)
    before = info(app)["refused"]["egress"]["packets"]
    theirs, elsewhere = netns(other), ips(db)[0]
    forgeoned.kill()
    assert not connects(theirs, elsewhere)
    forgeoned.start()
    assert info(app)["refused"]["egress"]["packets"] >= before > 0
    assert reaches(app, db)
    assert is_kept_from(other, db)
    # And they go on following.
    db.remove()
    again = server(forgeoned, sleeper["native"], name="db2")
    assert reaches(app, again)


def test_rules_that_somebody_flushed_are_back_when_a_container_starts(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    web = server(forgeoned, sleeper["native"])
    app = plan(forgeoned, egress="none").run()
    config = app.container(sleeper["native"], *SLEEP)
    id_ = app.create(config)
    namespaces.run_in(netns(app), lambda: nft("flush", "ruleset"))
    assert reaches(app, web)
    forgeoned.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(60))
    assert is_kept_from(app, web)
    entries = [path.read_bytes() for path in (Path(forgeoned.config.root) / "audit").rglob("*") if path.is_file()]
    assert any(b"dev.forgeone.sandbox.network.repaired" in entry for entry in entries)


@pytest.mark.parametrize("engine", ["native", "wasm"])
def test_a_pod_on_the_hosts_network_cannot_be_kept_to_a_rule(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None, engine: str
) -> None:
    pod = plan(forgeoned, engine=engine, egress="none")
    pod.config.linux.security_context.namespace_options.network = pb.NODE
    said = refused(pod.run)
    assert said.startswith("FAILED_PRECONDITION denied by profile.network: ")
    assert "the host's network" in said


@pytest.mark.parametrize("capability", ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "ALL"])
def test_a_container_that_could_get_around_its_pods_rule_is_not_created(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None, capability: str
) -> None:
    pod = plan(forgeoned, ingress="none").run()
    config = pod.container(sleeper["native"], *SLEEP)
    config.linux.security_context.capabilities.add_capabilities.append(capability)
    assert "denied by profile.network: " in refused(lambda: pod.create(config))


def test_a_container_of_a_pod_with_a_rule_has_no_packet_sockets(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    held = {}
    for rule in ({}, {"egress": "none"}):
        pod = plan(forgeoned, **rule).run()
        status = pod.output(sleeper["native"], "cat", "/proc/self/status")
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd"))
        held[bool(rule)] = bool(int(mask, 16) >> 13 & 1)
    assert held == {False: True, True: False}


def test_a_pod_with_a_user_namespace_is_kept_to_its_rule_by_the_host(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    web = server(forgeoned, sleeper["native"])
    app = plan(forgeoned, egress="none")
    options = app.config.linux.security_context.namespace_options.userns_options
    options.mode = pb.POD
    for mapping in (options.uids.add(), options.gids.add()):
        mapping.host_id, mapping.container_id, mapping.length = 3 << 16, 0, 1 << 16
    config = app.run().container(sleeper["native"], *SLEEP)
    config.linux.security_context.namespace_options.CopyFrom(app.config.linux.security_context.namespace_options)
    id_ = app.start(config)
    assert is_kept_from(app, web)
    assert get(app, id_, web).exit_code
    config.metadata.name = "admin"
    config.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    assert "denied by profile.network: " in refused(lambda: app.create(config))


def test_a_policy_that_comes_later_holds_for_pods_that_are_there(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    app, web = plan(forgeoned).run(), plan(forgeoned).run()
    config = web.container(sleeper["native"], *SERVE)
    config.linux.security_context.capabilities.drop_capabilities.append("NET_RAW")
    serves, raw = web.start(config), app.start(app.container(sleeper["native"], *SLEEP))
    until(partial(connects, netns(web), "127.0.0.1"))
    assert reaches(app, web)
    directory = Path(forgeoned.config.contract.policies_dir)
    directory.mkdir(exist_ok=True)
    policy = directory / "closed.yaml"

    def reload() -> None:
        node_pb2_grpc.NodeStub(forgeoned.channel).Reload(node_pb2.ReloadRequest(), timeout=patient(30))

    try:
        policy.write_text(FLOOR)
        reload()
        until(lambda: is_kept_from(app, web))
        assert info(app)["refused"]["egress"]["packets"]
        # One that could get around the rule ends.
        assert app.wait(raw).reason == "Denied"
        assert web.status(serves).state == pb.CONTAINER_RUNNING
        forgeoned.kill()
        forgeoned.start()
        assert is_kept_from(app, web)
        assert web.status(serves).state == pb.CONTAINER_RUNNING
    finally:
        policy.unlink()
        reload()


def test_a_rule_with_too_many_combinations_refuses_the_pod(forgeoned: Daemon, removed: None) -> None:
    peers = [{"cidr": f"10.{number}.0.0/16", "ports": [1, 3, 5, 7]} for number in range(60)]
    document = json.dumps({"profile": {"network": {"egress": peers}}})
    said = refused(plan(forgeoned, contract=document).run)
    assert "denied by profile.network: it cannot be enforced: " in said
    assert "network.egress: 720 combinations" in said


def test_a_port_is_forwarded_to_a_pod_that_nobody_may_talk_to(
    forgeoned: Daemon, sleeper: dict[str, str], removed: None
) -> None:
    closed = server(forgeoned, sleeper["native"], ingress="none", node="false", egress="none")
    assert not connects(None, ips(closed)[0])
    request = pb.PortForwardRequest(pod_sandbox_id=closed.id, port=[80])
    with SocketClient(forgeoned.runtime.PortForward(request).url, "v4.channel.k8s.io") as client:
        client.say(0, b"GET /hostname HTTP/1.0\r\n\r\n")
        client.until(lambda: b"tester" in client.heard[0])


def test_host_ports_are_for_whom_the_contract_names(forgeoned: Daemon, sleeper: dict[str, str], removed: None) -> None:
    port = free_port()
    for rule, reached in (({"ingress": "none"}, True), ({"ingress": "none", "node": "false"}, False)):
        pod = plan(forgeoned, **rule)
        pod.config.port_mappings.append(pb.PortMapping(container_port=80, host_port=port))
        pod.run().start(pod.container(sleeper["native"], *SERVE))
        until(partial(connects, netns(pod), "127.0.0.1"))
        assert connects(None, "127.0.0.1", port=port, seconds=3 if reached else 0.4) is reached
        pod.remove()


def test_pods_on_cni_networks_are_kept_to_their_rules_too(
    daemon_factory: Callable[..., Daemon], sleeper: dict[str, str]
) -> None:
    daemon = daemon_factory({"cni.in_process": True})
    bridge, net = f"bn{secrets.token_hex(3)}", f"10.{secrets.randbelow(100) + 120}.{secrets.randbelow(256)}"
    folder = Path(daemon.config.cni.conf_dir)
    folder.mkdir(exist_ok=True)
    ipam = {"type": "host-local", "dataDir": str(daemon.directory / "leases"), "ranges": [[{"subnet": f"{net}.0/24"}]]}
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": ipam}
    made = {"cniVersion": "1.0.0", "name": "ruled", "plugins": [plugin]}
    (folder / "10-ruled.conflist").write_text(json.dumps(made))
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=sleeper["native"])), timeout=patient(60))
    try:
        db, web = server(daemon, sleeper["native"], name="db"), server(daemon, sleeper["native"], ingress="none")
        app = plan(daemon, egress="pod:tests/db tcp/80").run()
        assert ips(app)[0].startswith(f"{net}.")
        assert reaches(app, db)
        assert is_kept_from(app, web)
        assert is_kept_from(db, web)
        assert connects(None, ips(web)[0], seconds=3)
        assert "cniResult" in info(app)
        daemon.remove_pods()
    finally:
        ip("link", "delete", bridge)
