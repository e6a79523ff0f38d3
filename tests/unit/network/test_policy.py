"""What a network rule means: which packets that begin something pass."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Security
from forgeone_shim.contract.merge import tighten
from forgeone_shim.contract.model import Contract, NetworkRule, Peer, PortRange, TrustProfile
from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.policy import (
    MAX_PASSES,
    Local,
    Pass,
    Ruleset,
    Surroundings,
    means,
    packed,
    plan,
    unenforceable,
    withheld,
)

SHOP = Local(namespace="shop", name="db", addresses=packed(("10.88.0.5", "fd88::5")))
WEB = Local(namespace="web", name="front", addresses=packed(("10.88.0.6",)))
NODE = ("10.88.0.1", "fd88::1")
FACTS = Surroundings(node=packed(NODE), resolvers=("10.96.0.10",), pods=(SHOP, WEB))
TCP, UDP, SCTP, ICMP, ICMPV6, ESP = 6, 17, 132, 1, 58, 50


def passes(rules: Iterable[Pass], groups: Ruleset, address: str, protocol: int, port: int) -> bool:
    """As the kernel would decide."""
    ip = ip_address(address)
    sets = {one.name: one.addresses for one in groups.groups}
    return any(
        one.version == ip.version
        and (one.range is None or ip in one.range)
        and (not one.group or ip.packed in sets[one.group])
        and one.protocol in (None, protocol)
        and (one.ports is None or one.ports.first <= port <= one.ports.last)
        for one in rules
    )


def leaves(rule: NetworkRule, address: str, protocol: int = TCP, port: int = 80, facts: Surroundings = FACTS) -> bool:
    made = plan(rule, facts)
    return made.egress is None or passes(made.egress, made, address, protocol, port)


def enters(rule: NetworkRule, address: str, protocol: int = TCP, port: int = 80, facts: Surroundings = FACTS) -> bool:
    made = plan(rule, facts)
    return made.ingress is None or passes(made.ingress, made, address, protocol, port)


def to(*peers: Peer) -> NetworkRule:
    return NetworkRule(egress=peers, dns=False)


def test_what_is_left_unsaid_is_not_restricted() -> None:
    made = plan(NetworkRule(), FACTS)
    assert (made.egress, made.ingress, made.groups) == (None, None, ())
    assert leaves(NetworkRule(ingress=()), "192.0.2.1")
    assert enters(NetworkRule(egress=()), "192.0.2.1")


@pytest.mark.parametrize(
    ("peer", "address", "protocol", "port", "passed"),
    [
        (Peer(), "192.0.2.1", TCP, 80, True),
        (Peer(), "2001:db8::1", ESP, 0, True),
        (Peer(cidr="0.0.0.0/0"), "192.0.2.1", TCP, 80, True),
        (Peer(cidr="0.0.0.0/0"), "2001:db8::1", TCP, 80, False),
        (Peer(cidr="10.0.0.0/8"), "10.255.0.1", UDP, 1, True),
        (Peer(cidr="10.0.0.0/8"), "11.0.0.1", UDP, 1, False),
        (Peer(cidr="2001:db8::/64"), "2001:db8::ffff", TCP, 80, True),
        (Peer(cidr="2001:db8::/64"), "2001:db8:1::1", TCP, 80, False),
        (Peer(cidr="10.1.2.3/32"), "10.1.2.3", ICMP, 0, True),
        (Peer(cidr="10.1.2.3/32"), "10.1.2.4", ICMP, 0, False),
        (Peer(pod="shop/db"), "10.88.0.5", TCP, 80, True),
        (Peer(pod="shop/db"), "fd88::5", TCP, 80, True),
        (Peer(pod="shop/db"), "10.88.0.6", TCP, 80, False),
        (Peer(pod="shop/*"), "10.88.0.5", TCP, 80, True),
        (Peer(pod="web/db"), "10.88.0.5", TCP, 80, False),
        (Peer(pod="none/here"), "10.88.0.5", TCP, 80, False),
        (Peer(pod="shop/db", cidr="10.88.0.0/24"), "10.88.0.5", TCP, 80, True),
        (Peer(pod="shop/db", cidr="10.88.0.0/24"), "fd88::5", TCP, 80, False),
        (Peer(pod="shop/db", cidr="10.99.0.0/24"), "10.88.0.5", TCP, 80, False),
        (Peer(protocol="tcp"), "192.0.2.1", TCP, 80, True),
        (Peer(protocol="tcp"), "192.0.2.1", UDP, 80, False),
        (Peer(protocol="sctp"), "2001:db8::1", SCTP, 9, True),
        (Peer(protocol="icmp"), "192.0.2.1", ICMP, 0, True),
        (Peer(protocol="icmp"), "2001:db8::1", ICMPV6, 0, True),
        (Peer(protocol="icmp"), "2001:db8::1", ICMP, 0, False),
        (Peer(protocol="icmp"), "192.0.2.1", TCP, 80, False),
        (Peer(protocol="icmp", ports=(PortRange(1, 9),)), "192.0.2.1", ICMP, 1, False),
        (Peer(protocol="tcp", ports=(PortRange(80, 80),)), "192.0.2.1", TCP, 80, True),
        (Peer(protocol="tcp", ports=(PortRange(80, 80),)), "192.0.2.1", TCP, 81, False),
        (Peer(protocol="udp", ports=(PortRange(1, 9), PortRange(20, 29))), "192.0.2.1", UDP, 25, True),
        (Peer(protocol="udp", ports=(PortRange(1, 9), PortRange(20, 29))), "192.0.2.1", UDP, 10, False),
        (Peer(ports=(PortRange(53, 53),)), "192.0.2.1", SCTP, 53, True),
        (Peer(ports=(PortRange(53, 53),)), "192.0.2.1", ESP, 53, False),
        (Peer(ports=(PortRange(53, 53),)), "192.0.2.1", ICMP, 53, False),
    ],
)
def test_a_peer_lets_through_what_it_says_each_way(
    peer: Peer, address: str, protocol: int, port: int, passed: bool
) -> None:
    assert leaves(to(peer), address, protocol, port) is passed
    assert enters(NetworkRule(ingress=(peer,), node=False), address, protocol, port) is passed


def test_an_empty_list_lets_nothing_through_but_the_node() -> None:
    nothing = NetworkRule(egress=(), ingress=())
    assert not leaves(nothing, "10.96.0.10", UDP, 53)
    assert not enters(nothing, "192.0.2.1")
    assert enters(nothing, "10.88.0.1")
    assert enters(nothing, "fd88::1")
    assert not enters(NetworkRule(ingress=(), node=False), "10.88.0.1")


def test_who_may_talk_to_somebody_may_ask_the_pods_name_servers() -> None:
    peers = (Peer(cidr="192.0.2.0/24"),)
    assert leaves(NetworkRule(egress=peers), "10.96.0.10", UDP, 53)
    assert leaves(NetworkRule(egress=peers), "10.96.0.10", TCP, 53)
    assert not leaves(NetworkRule(egress=peers), "10.96.0.10", TCP, 54)
    assert not leaves(NetworkRule(egress=peers), "10.96.0.11", UDP, 53)
    assert not leaves(NetworkRule(egress=peers, dns=False), "10.96.0.10", UDP, 53)


def test_the_node_is_no_way_out() -> None:
    assert not leaves(NetworkRule(egress=(Peer(cidr="192.0.2.0/24"),)), "10.88.0.1", TCP, 10250)


def test_ports_that_touch_are_one_range() -> None:
    peer = Peer(protocol="tcp", cidr="10.0.0.0/8", ports=(PortRange(5, 9), PortRange(1, 4), PortRange(3, 3)))
    made = plan(to(peer), FACTS)
    assert made.egress == (Pass(4, ip_network("10.0.0.0/8"), "", TCP, PortRange(1, 9)),)


def test_a_rule_that_would_slow_every_packet_down_is_refused() -> None:
    ports = tuple(PortRange(port, port) for port in range(1, 17, 2))
    many = tuple(Peer(cidr=f"10.{n}.0.0/16", protocol="tcp", ports=ports) for n in range(MAX_PASSES // 8))
    plan(NetworkRule(egress=many, ingress=many), FACTS)
    assert not unenforceable(to(*many), host_network=False)
    for rule in (to(*many, Peer(cidr="11.0.0.0/8")), NetworkRule(ingress=(*many, Peer(cidr="11.0.0.0/8")))):
        with pytest.raises(InvalidInput, match=r"network\.\w+: 513 combinations"):
            plan(rule, FACTS)
        assert "513 combinations" in unenforceable(rule, host_network=False)


def test_a_pod_is_meant_by_its_name_or_its_whole_namespace() -> None:
    assert means("shop/db", SHOP)
    assert means("shop/*", SHOP)
    assert not means("shop/d", SHOP)
    assert not means("shop/dba", SHOP)
    assert not means("sho/db", SHOP)


@pytest.mark.parametrize(
    ("given_facts", "why"),
    [
        ({"host_network": True}, "host's network"),
        ({"host_network": False, "privileged": True}, "privileged"),
        ({"host_network": False, "capabilities": ("CHOWN", "NET_ADMIN")}, "NET_ADMIN"),
        ({"host_network": False, "capabilities": ("NET_RAW",)}, "NET_RAW"),
        ({"host_network": False, "capabilities": ("SYS_ADMIN",)}, "SYS_ADMIN"),
        ({"host_network": False, "capabilities": ("SYS_MODULE",)}, "SYS_MODULE"),
        ({"host_network": False, "capabilities": ("SYS_RAWIO",)}, "SYS_RAWIO"),
        ({"host_network": False, "capabilities": ("SYS_BOOT",)}, "SYS_BOOT"),
        ({"host_network": False, "capabilities": ("DAC_OVERRIDE", "DAC_READ_SEARCH")}, "DAC_READ_SEARCH"),
        ({"host_network": False, "host_pid": True, "capabilities": ("SYS_PTRACE",)}, "SYS_PTRACE"),
        ({"host_network": False, "host_pid": True, "capabilities": ("KILL",)}, ""),
        ({"host_network": False, "capabilities": ("SYS_PTRACE",)}, ""),
        ({"host_network": False, "capabilities": ("CHOWN", "NET_BIND_SERVICE")}, ""),
        ({"host_network": False, "privileged": True, "capabilities": ("NET_ADMIN",), "engine": "microvm"}, ""),
        ({"host_network": True, "engine": "microvm"}, "host's network"),
    ],
)
def test_a_rule_that_could_be_evaded_is_refused(given_facts: dict[str, object], why: str) -> None:
    said = unenforceable(NetworkRule(egress=()), **given_facts)  # type: ignore[arg-type]
    assert (why in said) if why else not said
    assert not unenforceable(NetworkRule(), **given_facts)  # type: ignore[arg-type]
    assert not unenforceable(None, **given_facts)  # type: ignore[arg-type]


def test_a_pod_with_a_rule_has_no_packet_sockets_unless_it_insists() -> None:
    rule = NetworkRule(ingress=())
    assert withheld(rule, Security()) == ("NET_RAW",)
    assert withheld(rule, Security(drop_capabilities=("CHOWN",))) == ("NET_RAW",)
    for insists in (
        Security(add_capabilities=("cap_net_raw",)),
        Security(add_capabilities=("ALL",)),
        Security(add_ambient_capabilities=("NET_RAW",)),
        Security(privileged=True),
    ):
        assert not withheld(rule, insists)
    assert not withheld(rule, Security(), "microvm")
    assert not withheld(None, Security())
    assert not withheld(NetworkRule(), Security())


PORTS = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: PortRange(min(pair), max(pair)))
PEERS = st.builds(
    Peer,
    cidr=st.sampled_from(("", "10.88.0.0/24", "10.88.0.4/30", "10.88.0.5/32", "0.0.0.0/0", "fd88::/64", "::/0")),
    pod=st.sampled_from(("", "shop/db", "shop/*", "web/front")),
    ports=st.lists(PORTS, max_size=2).map(tuple),
    protocol=st.sampled_from(("", "tcp", "udp")),
)
LISTS = st.none() | st.lists(PEERS, max_size=3).map(tuple)
RULES = st.builds(NetworkRule, egress=LISTS, ingress=LISTS, node=st.booleans(), dns=st.booleans())
ADDRESSES = st.sampled_from(("10.88.0.1", "10.88.0.5", "10.88.0.6", "10.96.0.10", "192.0.2.1", "fd88::5", "fd88::1"))


@given(a=RULES, b=RULES, address=ADDRESSES, protocol=st.sampled_from((TCP, UDP, ESP)), port=st.integers(1, 10))
def test_joined_rules_let_through_what_both_do_and_no_more(
    a: NetworkRule, b: NetworkRule, address: str, protocol: int, port: int
) -> None:
    one, other = (Contract(profile=TrustProfile(network=rule)) for rule in (a, b))
    both = tighten(one, other).profile.network or NetworkRule()
    for may in (leaves, enters):
        separately = may(a, address, protocol, port) and may(b, address, protocol, port)
        # Each may let the node or the name servers in by naming them; joined, that name is what counts.
        named = address in (*NODE, *FACTS.resolvers) or port == 53
        assert not may(both, address, protocol, port) or separately
        assert named or may(both, address, protocol, port) is separately
