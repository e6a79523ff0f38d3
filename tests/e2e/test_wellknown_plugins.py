"""The well-known CNI plugins in-process against the distribution's programs: the same kernel, files and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.network.cni.plugin import CniError, Command
from tests.e2e.cni_lab import DataDir, Doer, World, by_program, differences, in_process
from tests.e2e.network_lab import run_as_host

pytestmark = pytest.mark.root

V4: dict[str, Any] = {"ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
V6: dict[str, Any] = {"ranges": [[{"subnet": "fd88::/64"}]], "routes": [{"dst": "::/0"}]}
DUAL: dict[str, Any] = {
    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


def bridge(ipam: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    section = {} if ipam is None else {"ipam": {"type": "host-local", "dataDir": DataDir, **ipam}}
    return {"type": "bridge", "bridge": "tbr0", **section, **more}


def ptp(ipam: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "ptp", "ipam": {"type": "host-local", "dataDir": DataDir, **ipam}, **more}


def port(host_port: int, protocol: str = "tcp", container_port: int = 80, **more: Any) -> dict[str, Any]:
    return {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}


def portmap(*ports: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "portmap", "capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": ports}, **more}


def bandwidth(**limits: int) -> dict[str, Any]:
    return {"type": "bandwidth", "capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": limits}}


GATEWAY = bridge(V4, isGateway=True)
DUAL_GATEWAY = bridge(DUAL, isGateway=True)
MBIT = 1_000_000


@dataclass(frozen=True)
class Case:
    plugins: tuple[dict[str, Any], ...]
    version: str = "1.0.0"
    # A bridge without an address of its own takes the lowest MAC of its ports, which is random among several.
    pods: tuple[str, ...] = ("a", "b")
    patient: bool = False


CASES = {
    "bridge-v4": Case((bridge(V4),), pods=("a",)),
    "bridge-v6": Case((bridge(V6),), pods=("a",)),
    "bridge-gateway": Case((GATEWAY,)),
    "bridge-gateway-v6": Case((bridge(V6, isGateway=True),), patient=True),
    "bridge-gateway-dual": Case((DUAL_GATEWAY,)),
    "bridge-old-result": Case((DUAL_GATEWAY,), version="0.4.0"),
    "bridge-older-result": Case((DUAL_GATEWAY,), version="0.3.1"),
    "bridge-default-gateway": Case((bridge({"subnet": "10.88.0.0/24"}, isDefaultGateway=True),)),
    "bridge-masquerade": Case((bridge(DUAL, isGateway=True, ipMasq=True),)),
    "bridge-hairpin": Case((bridge(V4, isGateway=True, hairpinMode=True, mtu=1400),)),
    "bridge-promiscuous": Case((bridge(V4, isGateway=True, promiscMode=True),)),
    "bridge-layer-2": Case((bridge(),), pods=("a",)),
    "bridge-mac": Case((bridge(V4, isGateway=True, runtimeConfig={"mac": "02:11:22:33:44:55"}),), pods=("a",)),
    "bridge-duplicate-detection": Case((bridge(V6, isGateway=True, enabledad=True),), pods=("a",)),
    "bridge-dns": Case((bridge(V4, isGateway=True, dns={"nameservers": ["10.0.0.10"], "search": ["x.y"]}),)),
    "ptp": Case((ptp(V4),)),
    "ptp-dual": Case((ptp(DUAL, ipMasq=True, mtu=1400),), version="0.4.0"),
    "ptp-patient": Case((ptp(V6),), pods=("a",), patient=True),
    "ptp-and-portmap": Case((ptp(DUAL), portmap(port(8080)), bandwidth(ingressRate=MBIT, ingressBurst=MBIT))),
    "ranges": Case(
        (
            bridge(
                {
                    "ranges": [
                        [
                            {"subnet": "10.88.1.0/29", "rangeStart": "10.88.1.3", "rangeEnd": "10.88.1.3"},
                            {"subnet": "10.88.2.0/24", "gateway": "10.88.2.254"},
                        ]
                    ],
                    "routes": [{"dst": "192.0.2.0/24", "gw": "10.88.1.2"}],
                }
            ),
        ),
        pods=("a",),
    ),
    "ranges-at-runtime": Case(
        (bridge({"routes": [{"dst": "0.0.0.0/0"}]}, runtimeConfig={"ipRanges": [[{"subnet": "10.99.0.0/16"}]]}),),
        pods=("a",),
    ),
    "portmap-none": Case((GATEWAY, portmap())),
    "portmap-tcp": Case((GATEWAY, portmap(port(8080)))),
    "portmap-all": Case(
        (
            DUAL_GATEWAY,
            portmap(port(8080), port(8081, "udp", 53), port(8082, "sctp"), port(8080, container_port=81), snat=True),
        )
    ),
    "portmap-host-ip": Case(
        (
            DUAL_GATEWAY,
            portmap(
                port(8080, hostIP="192.0.2.7"),
                port(8081, hostIP="2001:db8::7"),
                port(8082, hostIP="0.0.0.0"),
                port(8083, hostIP="127.0.0.1"),
            ),
        )
    ),
    "portmap-without-snat": Case((DUAL_GATEWAY, portmap(port(8080), port(8081, "udp"), snat=False))),
    "portmap-mark": Case((GATEWAY, portmap(port(8080), markMasqBit=5))),
    "portmap-many": Case((GATEWAY, portmap(*(port(9000 + n) for n in range(17))))),
    "portmap-and-masquerade": Case((bridge(DUAL, isGateway=True, ipMasq=True), portmap(port(8080)))),
    "firewall": Case((DUAL_GATEWAY, {"type": "firewall", "backend": "iptables"})),
    "firewall-admin": Case(
        (GATEWAY, {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "ADMIN-OVERRIDES"})
    ),
    "bandwidth-in": Case((GATEWAY, bandwidth(ingressRate=10 * MBIT, ingressBurst=MBIT))),
    "bandwidth-out": Case((GATEWAY, bandwidth(egressRate=10 * MBIT, egressBurst=MBIT))),
    "bandwidth-both": Case(
        (
            GATEWAY,
            bandwidth(ingressRate=MBIT, ingressBurst=2**31 - 1, egressRate=50_000 * MBIT, egressBurst=2**31 - 1),
        ),
        version="0.4.0",
    ),
    "bandwidth-none": Case((GATEWAY, bandwidth())),
    "everything": Case(
        (
            bridge(DUAL, isGateway=True, ipMasq=True, hairpinMode=True),
            portmap(port(8080), port(8081, "udp")),
            {"type": "firewall", "backend": "iptables"},
            bandwidth(ingressRate=MBIT, ingressBurst=MBIT, egressRate=MBIT, egressBurst=MBIT),
        )
    ),
}


def life(case: Case, directory: Path, add: Doer, delete: Doer) -> list[Any]:
    """Everything a plugin is asked in the life of a few pods, and all there is to see after each step."""

    def body() -> list[Any]:
        seen: list[Any] = []
        with World(directory, case.plugins, case.version, patient=case.patient) as world:
            for pod in case.pods:
                world.call(add, Command.ADD, pod)
            seen.append(world.snapshot())
            for pod in case.pods:
                check(world, add, pod)
            seen.append(world.snapshot())
            for pod in case.pods:
                world.call(delete, Command.DEL, pod)
                seen.append(world.snapshot())
            world.call(delete, Command.DEL, case.pods[0])
            seen.append(world.snapshot())
        return seen

    directory.mkdir()
    return run_as_host(body)


def check(world: World, do: Doer, pod: str) -> None:
    try:
        world.call(do, Command.CHECK, pod)
    except CniError as error:
        # The program looks for IPv6 rules of a container without IPv6, and for a default route's gateway.
        if do is in_process:
            raise AssertionError(f"CHECK: {error}") from error


@pytest.mark.parametrize("name", CASES)
def test_a_pods_life_leaves_the_same_traces(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = life(case, tmp_path / "programs", by_program, by_program)
    assert differences(expected, life(case, tmp_path / "process", in_process, in_process)) == []
