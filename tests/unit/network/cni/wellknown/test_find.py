"""Which configurations are done in-process: all of one is understood, or the program has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.network.cni.wellknown import find, iptables
from forgeone_shim.network.cni.wellknown.iptables import Iptables

COMMON: dict[str, Any] = {"name": "pods", "cniVersion": "1.0.0"}
IPAM: dict[str, Any] = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE: dict[str, Any] = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": IPAM}
PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


@pytest.fixture(autouse=True)
def host_with_iptables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "find_iptables", lambda version: Iptables("/sbin/xtables-nft-multi", version))


def portmap(**port: Any) -> dict[str, Any]:
    return {"type": "portmap", "runtimeConfig": {"portMappings": [{**PORT, **port}]}}


def ranges(**range_: Any) -> dict[str, Any]:
    return {"type": "host-local", "ipam": {"type": "host-local", "ranges": [[range_]]}}


@pytest.mark.parametrize(
    "config",
    [
        {"type": "loopback"},
        {"type": "loopback", "capabilities": {"x": True}, "prevResult": {"anything": 1}, "dns": {"domain": "x"}},
        BRIDGE,
        {
            **BRIDGE,
            "mtu": None,
            "vlan": 0,
            "promiscMode": False,
            "cni.dev/valid-attachments": [],
            "cniVersion": "1.1.0",
        },
        {"type": "bridge"},
        {"type": "ptp", "ipam": IPAM, "ipMasq": True, "mtu": 1400},
        {**BRIDGE, "args": {"cni": {"mac": "02:00:00:00:00:01", "ips": ["10.1.2.3/16"]}}},
        {"type": "host-local", "ipam": IPAM},
        {"type": "host-local", "ipam": {"type": "host-local", "subnet": "fd00:1::/64", "gateway": "fd00:1::ff"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        portmap(hostIP="::1", protocol="sctp"),
        {**portmap(), "snat": False, "markMasqBit": 14},
        {**portmap(), "externalSetMarkChain": "KUBE-MARK-MASQ", "conditionsV4": None},
        {"type": "firewall", "backend": "iptables", "ingressPolicy": "open"},
        {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000},
        {"type": "bandwidth", "runtimeConfig": {"bandwidth": {"egressRate": 10**15, "egressBurst": 2**32 - 1}}},
    ],
)
def test_a_configuration_that_is_understood_is_done_here(config: dict[str, Any]) -> None:
    assert find(config["type"], {**COMMON, **config}) is not None


@pytest.mark.parametrize(
    "config",
    [
        {"type": "loopback", "novelty": 1},
        {"type": "loopback", "name": "../x"},
        {"type": "loopback", "name": ""},
        {"type": "loopback", "cniVersion": "0.2.0"},
        {"type": "firewall", "backend": "iptables", "cniVersion": "0.3.1"},
        {"type": "loopback", "cniVersion": "2.0.0"},
        {"type": "loopback", "dns": {"nameservers": "10.0.0.1"}},
        {**BRIDGE, "ISGATEWAY": True},
        {**BRIDGE, "vlan": 100},
        {**BRIDGE, "macspoofchk": True},
        {**BRIDGE, "promiscMode": True, "hairpinMode": True},
        {**BRIDGE, "mtu": "1400"},
        {**BRIDGE, "mtu": True},
        {**BRIDGE, "isGateway": "yes"},
        {**BRIDGE, "bridge": "a/b"},
        {**BRIDGE, "bridge": "sixteen-letters-"},
        {**BRIDGE, "disableContainerInterface": True},
        {**BRIDGE, "ipam": {"type": "dhcp"}},
        {"type": "ptp"},
        {"type": "ptp", "ipam": IPAM, "isGateway": True},
        {**BRIDGE, "ipam": {"routes": []}},
        {**BRIDGE, "ipam": {**IPAM, "resolvConf": "/etc/resolv.conf"}},
        {**BRIDGE, "ipam": {**IPAM, "dataDir": "relative"}},
        {**BRIDGE, "ipam": {**IPAM, "routes": [{"dst": "10.0.0.1/8"}]}},
        {**BRIDGE, "ipam": {**IPAM, "routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}},
        {**BRIDGE, "ipam": {**IPAM, "routes": [{"dst": "10.0.0.0/8", "mtu": 1400}]}},
        {**BRIDGE, "runtimeConfig": {"mac": "not a mac"}},
        {**BRIDGE, "runtimeConfig": {"ips": ["10.1.0.9/x"]}},
        {**BRIDGE, "runtimeConfig": {"ips": ["10.1.0.9/33"]}},
        {**BRIDGE, "runtimeConfig": {"infinibandGUID": "x"}},
        ranges(subnet="10.1.0.5/24"),
        ranges(subnet="10.1.0.0/31"),
        ranges(subnet="10.1.0.0/255.255.0.0"),
        ranges(subnet="::ffff:10.0.0.0/120"),
        ranges(subnet="0.1.0.0/16"),
        ranges(subnet="10.1.0.0/24", rangeStart="10.2.0.1"),
        ranges(subnet="10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="10.1.0.8"),
        ranges(subnet="10.1.0.0/24", gateway="fd00::1"),
        ranges(subnet="10.1.0.0/24", novelty=1),
        {"type": "host-local", "ipam": {"type": "host-local", "ranges": []}},
        {"type": "host-local", "ipam": {"type": "host-local", "ranges": [[]]}},
        {"type": "host-local", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]] * 2}},
        {
            "type": "host-local",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
        },
        portmap(protocol="TCP"),
        portmap(hostPort=0),
        portmap(hostPort=65536),
        portmap(containerPort=-1),
        portmap(hostIP="localhost"),
        portmap(novelty=1),
        {**portmap(), "conditionsV4": ["-d", "10.0.0.1"]},
        {**portmap(), "externalSetMarkChain": "ACCEPT"},
        {**portmap(), "externalSetMarkChain": "-j ACCEPT"},
        {**portmap(), "externalSetMarkChain": "KUBE-MARK-MASQ", "markMasqBit": 3},
        {**portmap(), "markMasqBit": 32},
        {**portmap(), "backend": "nftables"},
        {"type": "firewall", "backend": "firewalld"},
        {"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"},
        {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "-j ACCEPT"},
        {"type": "bandwidth", "ingressRate": 8000},
        {"type": "bandwidth", "ingressRate": 7, "ingressBurst": 8000},
        {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 2**35},
        {"type": "bandwidth", "ingressRate": -1, "ingressBurst": 8000},
        {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000, "nonShapedSubnets": []},
    ],
)
def test_what_is_not_done_exactly_is_left_to_the_program(config: dict[str, Any]) -> None:
    assert find(config["type"], {**COMMON, **config}) is None


def test_an_iptables_nobody_knows_is_left_to_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "find_iptables", lambda _version: None)
    for config in (BRIDGE, portmap(), {"type": "firewall", "backend": "iptables"}):
        assert find(config["type"], {**COMMON, **config}) is None
    for config in ({**BRIDGE, "ipMasq": False}, {"type": "portmap"}):
        assert find(config["type"], {**COMMON, **config}) is not None


def test_a_firewall_without_backend_is_left_to_the_program_where_firewalld_may_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("forgeone_shim.network.cni.wellknown.firewall._BUS", (str(tmp_path / "bus"),))
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    assert find("firewall", {**COMMON, "type": "firewall"}) is not None
    (tmp_path / "bus").touch()
    assert find("firewall", {**COMMON, "type": "firewall"}) is None


WORDS = st.sampled_from(
    [*BRIDGE, *IPAM, *PORT, "runtimeConfig", "portMappings", "args", "cni", "dns", "x", "subnet", "ips"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["10.0.0.0/8", "tcp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(["loopback", "bridge", "ptp", "host-local", "portmap", "firewall", "bandwidth"]),
    st.dictionaries(WORDS, JSON, max_size=6),
)
def test_any_configuration_is_decided_about(kind: str, config: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iptables, "find_iptables", lambda version: Iptables("/sbin/xtables-nft-multi", version))
        find(kind, {**COMMON, **config})
