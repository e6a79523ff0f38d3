"""Pods on CNI networks over CRI, with Debian's plugins and with the test's own, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.cli import main as cli
from forgeone_shim.kernel.cgroups import Driver
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import cgroup_host, patient
from tests.e2e.pods import Pod
from tests.e2e.test_crash import Load
from tests.e2e.test_crash import _check_promises as check_promises
from tests.e2e.test_crash import _settle as settle

KILLS = int(os.environ.get("CNI_KILLS", "3"))
DEBIANS = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (DEBIANS / "bridge").exists(), reason="Debian's containernetworking-plugins are not there"),
]

# Writes what it was told beside itself, and fails as the file of its name, ".fails" and the command says.
RECORDER = """#!/bin/sh
config=$(cat)
printf '%s %s %s\\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$config" >> "$0.calls"
if [ -e "$0.fails.$CNI_COMMAND" ]; then
  echo '{"cniVersion":"1.0.0","code":77,"msg":"told to fail"}'; exit 1
fi
[ ! -e "$0.hangs.$CNI_COMMAND" ] || { echo $$ > "$0.hanging"; exec sleep 300; }
case $CNI_COMMAND in
ADD) printf '%s' "$config" | sed 's/.*"prevResult":\\({.*}\\).*/\\1/; s/},"prevResult.*/}/' > "$0.result"
     python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)["prevResult"]))' <<END
$config
END
;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}';;
esac
"""


@dataclass
class Node:
    """A daemon whose pods are on a bridge network of the test's own."""

    daemon: Daemon
    directory: Path
    bridge: str = field(default_factory=lambda: f"bc{secrets.token_hex(3)}")
    name: str = field(default_factory=lambda: f"net{secrets.token_hex(3)}")
    subnet: str = field(default_factory=lambda: f"10.{secrets.randbelow(100) + 120}.{secrets.randbelow(256)}")

    @property
    def leases(self) -> Path:
        return self.directory / "leases" / self.name

    def addresses(self) -> list[str]:
        """The addresses that host-local has given out."""
        if not self.leases.exists():
            return []
        return sorted(path.name for path in self.leases.iterdir() if path.name[0].isdigit())

    def rules(self) -> list[str]:
        """What is in iptables for its pods: rules have their addresses, comments the network's name."""
        found = []
        for program in ("iptables-save", "ip6tables-save"):
            saved = subprocess.run([program], check=False, capture_output=True, text=True).stdout
            found += [line for line in saved.splitlines() if self.name in line or f" {self.subnet}." in line]
        return found

    def bridged(self, **changes: Any) -> dict[str, Any]:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.leases.parent),
            "ranges": [[{"subnet": f"{self.subnet}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": True, "ipam": ipam} | changes

    def write(self, *plugins: dict[str, Any], version: str = "1.0.0", file: str = "10-test.conflist") -> None:
        folder = Path(self.daemon.config.cni.conf_dir)
        folder.mkdir(exist_ok=True)
        made = folder / f"{file}.tmp"
        made.write_text(json.dumps({"cniVersion": version, "name": self.name, "plugins": plugins}))
        made.rename(folder / file)

    def recorder(self, name: str = "recorder") -> Path:
        path = self.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECORDER)
        path.chmod(0o755)
        return path

    def status(self, pod: Pod) -> pb.PodSandboxStatusResponse:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
        return self.daemon.runtime.PodSandboxStatus(request, timeout=30)

    def ip(self, pod: Pod) -> str:
        return str(self.status(pod).status.network.ip)

    def details(self, pod: Pod) -> dict[str, Any]:
        return msgspec.json.decode(self.status(pod).info["info"], type=dict)

    def condition(self) -> pb.RuntimeCondition:
        status = self.daemon.runtime.Status(pb.StatusRequest(), timeout=30).status
        return next(one for one in status.conditions if one.type == "NetworkReady")


both_ways = pytest.mark.parametrize("node", [True, False], ids=["in-process", "programs"], indirect=True)


@pytest.fixture
def node(request: pytest.FixtureRequest, registry: Registry, tmp_path: Path) -> Iterator[Node]:
    daemon = Daemon(
        [registry.address],
        settings={
            "cni.bin_dirs": (str(tmp_path / "bin"), str(DEBIANS)),
            "cni.in_process": getattr(request, "param", True),
        },
    )
    made = Node(daemon, tmp_path)
    try:
        daemon.start()
        yield made
        if not daemon.running:
            daemon.start()
        daemon.remove_pods()
        assert made.addresses() == []
        assert not daemon.left()
        assert daemon.stop() == 0
        assert made.rules() == []
    except BaseException as error:
        error.add_note(daemon.log.read_text(errors="replace")[-5000:])
        raise
    finally:
        daemon.close()
        subprocess.run(["ip", "link", "delete", made.bridge], check=False, capture_output=True)


def answers(address: str, port: int, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with socket.create_connection((address, port), 1) as client:
                return bool(client.recv(16))
        except OSError:
            time.sleep(0.05)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}


@both_ways
def test_a_pod_gets_an_address_and_is_reached_and_reaches_its_host(node: Node, busybox: str) -> None:
    node.write(node.bridged(), {"type": "firewall"}, PORTMAP)
    pod = Pod.plan(node.daemon)
    port = free_port()
    pod.config.port_mappings.add(container_port=80, host_port=port)
    pod.run()
    assert node.ip(pod).startswith(node.subnet + ".")
    assert node.addresses() == [node.ip(pod)]
    node.daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod.start(pod.container(busybox, "sh", "-c", "while true; do echo hello | nc -l -p 80; done"))
    assert answers(node.ip(pod), 80), "the host reaches the pod"
    assert answers("127.0.0.1", port), "the host port leads to the pod"
    routes = pod.output(busybox, "ip", "route")
    assert f"default via {node.subnet}.1" in routes
    result = node.details(pod)["cniResult"]["eth0"]
    assert result["network"] == node.name
    assert result["ips"][0]["address"] == f"{node.ip(pod)}/24"
    hosts = pod.output(busybox, "cat", "/etc/hosts")
    assert node.ip(pod) in hosts
    pod.remove()
    assert node.addresses() == []


def test_the_builtin_network_is_left_the_moment_there_is_a_configuration(node: Node) -> None:
    first = Pod.plan(node.daemon).run()
    builtin = node.ip(first)
    assert not builtin.startswith(node.subnet + ".")
    assert "cniResult" not in node.details(first)
    node.write(node.bridged())
    second = Pod.plan(node.daemon).run()
    assert node.ip(second).startswith(node.subnet + ".")
    assert node.ip(first) == builtin, "a pod keeps what it has"
    assert node.condition().status
    (Path(node.daemon.config.cni.conf_dir) / "10-test.conflist").unlink()
    third = Pod.plan(node.daemon).run()
    assert not node.ip(third).startswith(node.subnet + ".")
    for pod in (first, second, third):
        pod.remove()
    assert node.addresses() == []


def test_a_bad_configuration_makes_the_network_not_ready_and_says_why(node: Node) -> None:
    node.write(node.bridged(), file="20-good.conflist")
    (Path(node.daemon.config.cni.conf_dir) / "10-bad.conflist").write_text('{"cniVersion": "1.0.0", "plugins": []}')
    condition = node.condition()
    assert not condition.status
    assert "10-bad.conflist" in condition.message
    assert "no name" in condition.message
    with pytest.raises(grpc.RpcError, match=r"10-bad\.conflist"):
        Pod.plan(node.daemon).run()
    (Path(node.daemon.config.cni.conf_dir) / "10-bad.conflist").unlink()
    assert node.condition().status
    Pod.plan(node.daemon).run().remove()


@both_ways
def test_an_add_that_fails_in_the_middle_of_the_chain_leaks_no_address(node: Node) -> None:
    recorder = node.recorder()
    node.write(node.bridged(), PORTMAP, {"type": "recorder"})
    (recorder.parent / "recorder.fails.ADD").touch()
    for _ in range(3):
        with pytest.raises(grpc.RpcError, match="told to fail"):
            Pod.plan(node.daemon).run()
    assert node.addresses() == []
    commands = [line.split()[0] for line in Path(f"{recorder}.calls").read_text().splitlines()]
    assert commands == ["ADD", "DEL"] * 3
    (recorder.parent / "recorder.fails.ADD").unlink()
    Pod.plan(node.daemon).run().remove()
    assert node.addresses() == []


@both_ways
def test_a_del_that_fails_is_repeated_until_it_succeeds(node: Node) -> None:
    recorder = node.recorder()
    node.write(node.bridged(), {"type": "recorder"})
    pod = Pod.plan(node.daemon).run()
    fails = recorder.parent / "recorder.fails.DEL"
    fails.touch()
    with pytest.raises(grpc.RpcError, match="told to fail"):
        pod.stop()
    assert len(node.addresses()) == 1
    # Its configuration is changed meanwhile, and the daemon killed: the pod is detached as it was attached.
    node.write({"type": "ptp"})
    node.daemon.kill()
    node.daemon.start()
    fails.unlink()
    until = time.monotonic() + 20
    while node.addresses():
        assert time.monotonic() < until, "the address is not free yet"
        time.sleep(0.05)
    pod.remove()


def test_a_plugin_that_hangs_is_ended_with_the_call(node: Node) -> None:
    recorder = node.recorder()
    node.write(node.bridged(), {"type": "recorder"})
    hangs = recorder.parent / "recorder.hangs.ADD"
    hangs.touch()
    with pytest.raises(grpc.RpcError) as caught:
        Pod.plan(node.daemon).run(timeout=2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    hangs.unlink()
    until = time.monotonic() + 20
    while node.addresses() or node.daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=10).items:
        assert time.monotonic() < until
        time.sleep(0.05)


@both_ways
@pytest.mark.parametrize("moment", ["add", "attached", "del"])
def test_a_kill_at_any_moment_leaks_nothing(node: Node, moment: str) -> None:
    recorder = node.recorder()
    node.write(node.bridged(), PORTMAP, {"type": "recorder"})
    pod = Pod.plan(node.daemon)
    if moment == "add":
        (recorder.parent / "recorder.hangs.ADD").touch()
        call = node.daemon.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=pod.config), timeout=60)
        wait_for(lambda: read(f"{recorder}.hanging").endswith("\n"))
    else:
        pod.run()
        if moment == "del":
            (recorder.parent / "recorder.hangs.DEL").touch()
            call = node.daemon.runtime.StopPodSandbox.future(
                pb.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60
            )
            wait_for(lambda: read(f"{recorder}.hanging").endswith("\n"))
    assert len(node.addresses()) == 1
    node.daemon.kill()
    if moment != "attached":
        call.cancel()
    for left in recorder.parent.glob("recorder.hangs.*"):
        left.unlink()
    node.daemon.start()
    if moment == "attached":
        assert node.addresses() == [node.ip(pod)], "a pod that runs keeps its address"
        wait_for(lambda: "CHECK" in read(f"{recorder}.calls"))
        pod.remove()
    else:
        hanging = int(read(f"{recorder}.hanging"))
        # One that nobody has reaped yet has no environment any more.
        assert not read(f"/proc/{hanging}/environ"), "it would go on after what undoes it"
    wait_for(lambda: not node.addresses())


def wait_for(reached: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + patient(seconds)
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.02)


def read(path: str) -> str:
    # What is below /proc may go between any two looks at it.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(path).read_text()
    return ""


def test_what_a_pod_asks_for_reaches_the_plugins_that_can_do_it(node: Node) -> None:
    recorder = node.recorder()
    capabilities = dict.fromkeys(("bandwidth", "dns", "ipRanges", "aliases", "cgroupPath", "portMappings"), True)
    node.write(node.bridged(), {"type": "recorder", "capabilities": capabilities})
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.11.0.0/24"))
    node.daemon.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config), timeout=30)
    parent = f"{node.daemon.config.cgroup_root}/parent"
    if cgroup_host().driver is Driver.SYSTEMD:
        parent = f"{parent[1:].replace('/', '-')}.slice"
    pod = Pod.plan(node.daemon, cgroup_parent=parent)
    pod.config.annotations["kubernetes.io/ingress-bandwidth"] = "10M"
    pod.config.dns_config.servers.append("10.0.0.10")
    pod.config.port_mappings.add(container_port=36412, host_port=36412, protocol=pb.SCTP, host_ip="127.0.0.1")
    pod.run()
    _, id_, told = Path(f"{recorder}.calls").read_text().splitlines()[0].split(" ", 2)
    assert id_ == pod.id
    asked = json.loads(told)["runtimeConfig"]
    assert asked == {
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.10"]},
        "ipRanges": [[{"subnet": "10.11.0.0/24"}]],
        "aliases": [pod.config.metadata.name, "tester"],
        "cgroupPath": parent,
        "portMappings": [{"hostPort": 36412, "containerPort": 36412, "protocol": "sctp", "hostIP": "127.0.0.1"}],
    }
    pod.remove()
    pod = Pod.plan(node.daemon)
    pod.config.annotations["kubernetes.io/egress-bandwidth"] = "fast"
    with pytest.raises(grpc.RpcError, match="egress-bandwidth") as caught:
        pod.run()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@both_ways
def test_bandwidth_is_limited(node: Node) -> None:
    node.write(node.bridged(), {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    pod = Pod.plan(node.daemon)
    pod.config.annotations["kubernetes.io/ingress-bandwidth"] = "10M"
    pod.config.annotations["kubernetes.io/egress-bandwidth"] = "5M"
    pod.run()
    shown = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    assert "rate 10Mbit" in shown
    assert "rate 5Mbit" in shown
    pod.remove()
    shown = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    assert "rate 10Mbit" not in shown
    assert "rate 5Mbit" not in shown


def test_bandwidth_is_limited_on_the_builtin_network(node: Node) -> None:
    pod = Pod.plan(node.daemon)
    pod.config.annotations["kubernetes.io/ingress-bandwidth"] = "11M"
    pod.config.annotations["kubernetes.io/egress-bandwidth"] = "6M"
    pod.run()
    shown = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    assert "rate 11Mbit" in shown
    assert "rate 6Mbit" in shown
    pod.remove()

    def is_gone() -> bool:
        shown = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
        return "rate 11Mbit" not in shown and "rate 6Mbit" not in shown

    # The links of detached pods are deleted a moment later.
    wait_for(is_gone)


@both_ways
def test_a_ptp_network_as_kind_has_it(node: Node) -> None:
    ipam = node.bridged()["ipam"]
    node.write({"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam}, PORTMAP, version="0.3.1")
    pod = Pod.plan(node.daemon).run()
    address = node.ip(pod)
    assert address.startswith(node.subnet + ".")
    assert subprocess.run(["ip", "route", "get", address], check=True, capture_output=True, text=True).stdout
    pod.remove()
    assert node.addresses() == []


@both_ways
def test_both_families_and_the_preferred_one_first(node: Node) -> None:
    ipam = node.bridged()["ipam"]
    ipam["ranges"].append([{"subnet": "fd77:0:0:7::/64"}])
    node.write(node.bridged(ipam=ipam))
    pod = Pod.plan(node.daemon).run()
    network = node.status(pod).status.network
    assert network.ip.startswith(node.subnet + ".")
    assert [one.ip.startswith("fd77:") for one in network.additional_ips] == [True]
    pod.remove()
    wait_for(lambda: not [path for path in node.leases.iterdir() if path.name.startswith("fd77")])


def test_status_of_a_1_1_network_counts_and_garbage_is_collected_at_the_start(node: Node) -> None:
    recorder = node.recorder()
    node.recorder("ipless")
    own = recorder.parent / "recorder"
    own.write_text(
        RECORDER.replace(
            "python3 -c",
            'echo "{\\"cniVersion\\":\\"1.1.0\\",\\"ips\\":[{\\"address\\":\\"192.0.2.7/32\\"}]}"; : python3 -c',
        )
    )
    node.write({"type": "recorder"}, version="1.1.0")
    assert node.condition().status
    (recorder.parent / "recorder.fails.STATUS").touch()
    wait_for(lambda: not node.condition().status)
    assert "told to fail" in node.condition().message
    (recorder.parent / "recorder.fails.STATUS").unlink()
    pod = Pod.plan(node.daemon).run()
    assert node.ip(pod) == "192.0.2.7"
    node.daemon.kill()
    Path(f"{recorder}.calls").write_text("")
    node.daemon.start()
    wait_for(lambda: "GC" in read(f"{recorder}.calls"))
    line = next(line for line in read(f"{recorder}.calls").splitlines() if line.startswith("GC"))
    assert json.loads(line.split(" ", 2)[2])["cni.dev/valid-attachments"] == [{"containerID": pod.id, "ifname": "eth0"}]
    pod.remove()


def test_mode_preference_and_folder_change_by_a_reload(node: Node) -> None:
    node.write(node.bridged())
    text = node.daemon.config_file.read_text()
    auto = '[network]\nmode = "auto"'
    assert auto in text
    node.daemon.config_file.write_text(text.replace(auto, '[network]\nmode = "builtin"'))
    reload(node.daemon)
    first = Pod.plan(node.daemon).run()
    assert not node.ip(first).startswith(node.subnet + ".")
    elsewhere = node.directory / "elsewhere.d"
    elsewhere.mkdir()
    changed = text.replace(auto, '[network]\nmode = "cni"').replace(node.daemon.config.cni.conf_dir, str(elsewhere))
    node.daemon.config_file.write_text(changed)
    reload(node.daemon)
    assert not node.condition().status
    with pytest.raises(grpc.RpcError, match="no network configuration"):
        Pod.plan(node.daemon).run()
    os.rename(Path(node.daemon.config.cni.conf_dir) / "10-test.conflist", elsewhere / "1.conflist")
    second = Pod.plan(node.daemon).run()
    assert node.ip(second).startswith(node.subnet + ".")
    first.remove()
    second.remove()


def reload(daemon: Daemon) -> None:
    assert cli.main(["--socket", daemon.socket, "reload"]) == 0


def test_a_handler_may_have_a_folder_of_its_own(node: Node) -> None:
    folder = node.directory / "special.d"
    folder.mkdir()
    handlers = Path(node.daemon.config.handlers_dir)
    handlers.mkdir()
    (handlers / "special.toml").write_text(f'cni_conf_dir = "{folder}"\n')
    reload(node.daemon)
    table = {"cniVersion": "1.0.0", "name": node.name, "plugins": [node.bridged()]}
    (folder / "1.conflist").write_text(json.dumps(table))
    pod = Pod.plan(node.daemon)
    request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler="special")
    pod.id = node.daemon.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id
    assert node.ip(pod).startswith(node.subnet + ".")
    other = Pod.plan(node.daemon).run()
    assert not node.ip(other).startswith(node.subnet + ".")
    pod.remove()
    other.remove()


def test_a_template_becomes_a_configuration_when_the_range_is_known(registry: Registry, tmp_path: Path) -> None:
    template = tmp_path / "template"
    settings = {
        "cni.bin_dirs": (str(DEBIANS),),
        "cni.conf_template": str(template),
    }
    daemon = Daemon([registry.address], settings=settings)
    node = Node(daemon, tmp_path)
    plugin = node.bridged()
    plugin["ipam"]["ranges"] = "@"
    text = json.dumps({"cniVersion": "1.0.0", "name": node.name, "plugins": [plugin]})
    ranges = '[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]'
    template.write_text(text.replace('"@"', ranges))
    try:
        daemon.start()
        assert not node.condition().status, "with a template it is CNI, which waits for the range"
        config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=f"{node.subnet}.0/24"))
        daemon.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config), timeout=30)
        assert node.condition().status
        pod = Pod.plan(daemon).run()
        assert node.ip(pod).startswith(node.subnet + ".")
        pod.remove()
        assert node.addresses() == []
        template.write_text("{{.Nonsense}}")
        with pytest.raises(grpc.RpcError, match="Nonsense"):
            daemon.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config), timeout=30)
        Path(daemon.config.cni.conf_dir, "00-other.conflist").write_text(text.replace('"@"', "[]"))
        daemon.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config), timeout=30)
    finally:
        daemon.close()
        subprocess.run(["ip", "link", "delete", node.bridge], check=False, capture_output=True)


@both_ways
def test_kills_under_load_leak_no_address_and_no_rule(node: Node, busybox: str) -> None:
    node.write(node.bridged(), {"type": "firewall"}, PORTMAP)
    node.daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    for number in range(KILLS):
        load = Load(node.daemon, busybox)
        workers = [threading.Thread(target=load.work) for _ in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(random.uniform(0.1, 1.0))
        node.daemon.kill()
        load.over.set()
        for worker in workers:
            worker.join(60)
        node.daemon.start()
        check_promises(load, number)
        settle(load)
        # A plugin that was running when its forgeoned was killed may end only now; what it did is undone by then.
        wait_for(lambda: not node.addresses() and not node.rules())
        assert not node.daemon.left()
