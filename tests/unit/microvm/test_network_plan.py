"""What of a pod's network namespace a guest is told."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.network import plan, rtnl
from engines.microvm.network.plan import Seen
from engines.microvm.network.rtnl import Held, Known, Link, Way
from engines.microvm.wire.messages import Neighbour, Route
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import taps
from forgeone_shim.kernel.netlink import Reply, attribute, nested, u32

MAC = bytes.fromhex("0a580a000005")
LO = Link(1, "lo", 65536, bytes(6), rtnl.IFF_UP | rtnl.IFF_LOOPBACK)
ETH0 = Link(2, "eth0", 1450, MAC, rtnl.IFF_UP)
TAP = Link(3, taps.NAME, 1500, bytes.fromhex("0200000000ff"), rtnl.IFF_UP)
SIT = Link(4, "sit0", 1480, bytes(4), 0)
LINKS = (LO, ETH0, TAP, SIT)


def held(address: str, *, routed: bool = True) -> Held:
    return Held(2, ip_interface(address), routed)


def way(destination: str, gateway: str = "", **more: object) -> Way:
    via = ip_address(gateway) if gateway else None
    return Way(**{"link": 2, "destination": ip_network(destination), "gateway": via, **more})  # type: ignore[arg-type]


def test_the_guest_has_the_pods_mac_addresses_routes_and_neighbours() -> None:
    seen = Seen(
        links=LINKS,
        addresses=[
            Held(1, ip_interface("127.0.0.1/8"), True),
            held("10.88.0.5/16"),
            held("fd00::5/64"),
            held("fe80::1/64"),
        ],
        routes=[way("0.0.0.0/0", "10.88.0.1"), way("::/0", "fd00::1", priority=1024)],
        neighbours=[Known(2, ip_address("10.88.0.1"), MAC), Known(3, ip_address("10.88.0.9"), MAC)],
    )
    made = plan.interface(seen)
    assert made is not None
    assert (made.name, made.mac, made.mtu) == ("eth0", MAC, 1450)
    assert made.addresses == ("10.88.0.5/16", "fd00::5/64")
    assert made.routes == (
        Route(destination="0.0.0.0/0", gateway="10.88.0.1"),
        Route(destination="::/0", gateway="fd00::1", priority=1024),
    )
    assert made.neighbours == (Neighbour(address="10.88.0.1", mac=MAC),)


def test_a_gateway_beyond_every_network_is_reached_first() -> None:
    seen = Seen(
        links=LINKS,
        addresses=[held("10.1.2.3/32")],
        routes=[way("0.0.0.0/0", "169.254.1.1"), way("10.9.0.0/16", "169.254.1.1"), way("169.254.1.1/32", scope=253)],
    )
    made = plan.interface(seen)
    assert made is not None
    assert [(one.destination, one.gateway, one.scope) for one in made.routes] == [
        ("169.254.1.1/32", "", 253),
        ("10.9.0.0/16", "169.254.1.1", 0),
        ("0.0.0.0/0", "169.254.1.1", 0),
    ]


def test_a_gateway_that_somebody_vouches_for_is_reached_straight() -> None:
    routes = [way("0.0.0.0/0", "10.0.0.1", onlink=True), way("10.9.0.0/16", "10.0.0.1", onlink=True)]
    made = plan.interface(Seen(links=LINKS, addresses=[held("10.1.2.3/32")], routes=routes))
    assert made is not None
    assert [one.destination for one in made.routes] == ["10.0.0.1/32", "10.9.0.0/16", "0.0.0.0/0"]
    near = plan.interface(Seen(links=LINKS, addresses=[held("10.0.0.3/24")], routes=routes))
    assert near is not None
    assert [one.destination for one in near.routes] == ["10.9.0.0/16", "0.0.0.0/0"]


def test_an_address_without_a_route_to_its_network_makes_none_in_the_guest() -> None:
    made = plan.interface(Seen(links=LINKS, addresses=[held("10.1.2.3/16", routed=False), held("fd00::3/64")]))
    assert made is not None
    assert made.addresses == ("10.1.2.3/32", "fd00::3/64")


def test_the_least_mtu_of_the_interface_and_its_routes_counts() -> None:
    made = plan.interface(Seen(links=LINKS, addresses=[held("10.1.2.3/16")], routes=[way("0.0.0.0/0", mtu=1280)]))
    assert made is not None
    assert made.mtu == 1280


def test_a_pod_without_a_network_has_no_interface() -> None:
    assert plan.interface(Seen(links=(LO, TAP, SIT))) is None


@pytest.mark.parametrize(
    ("links", "routes", "why"),
    [
        ((*LINKS, Link(5, "net1", 1500, MAC, rtnl.IFF_UP)), [], "eth0, net1"),
        ((LO, Link(2, "ipip", 1480, bytes(4), rtnl.IFF_UP)), [], "Ethernet"),
        (LINKS, [way("0.0.0.0/0", strange="several gateways", link=0)], "several gateways"),
    ],
)
def test_what_a_machine_cannot_have_is_refused(links: tuple[Link, ...], routes: list[Way], why: str) -> None:
    with pytest.raises(FailedPrecondition, match=why):
        plan.interface(Seen(links=links, routes=routes))


def test_the_kernels_own_routes_and_those_of_other_tables_are_not_told() -> None:
    def route(protocol: int = 3, table: int = 254, kind: int = 1, flags: int = 0) -> Reply:
        body = struct.pack("=BBBBBBBBI", 2, 16, 0, 0, table, protocol, 0, kind, flags)
        body += attribute(1, bytes([10, 9, 0, 0])) + u32(4, 2) + nested(8, u32(2, 1300))
        return Reply(24, body)

    replies = [route(), route(protocol=2), route(protocol=9), route(table=255), route(kind=2), route(flags=0x200)]
    assert rtnl.routes(replies) == [way("10.9.0.0/16", mtu=1300)]
    assert rtnl.networks(replies) == {(2, ip_network("10.9.0.0/16"))}
    assert not rtnl.networks([route(), route(protocol=2, table=255), route(protocol=2, kind=2)])


def test_the_network_of_an_address_is_on_the_link_only_as_long_as_the_kernel_says_so() -> None:
    def address(index: int) -> Reply:
        return Reply(20, struct.pack("=BBBBI", 2, 16, 0, 0, index) + attribute(2, bytes([10, 9, 0, 5])))

    found = rtnl.addresses([address(2), address(3)], {(3, ip_network("10.9.0.0/16"))})
    assert found == [held("10.9.0.5/16", routed=False), Held(3, ip_interface("10.9.0.5/16"), True)]


def test_only_permanent_neighbours_are_told() -> None:
    def neighbour(state: int, flags: int = 0) -> Reply:
        body = struct.pack("=BxxxiHBB", 10, 2, state, flags, 1)
        return Reply(28, body + attribute(1, IPv6Address("fd00::1").packed) + attribute(2, MAC))

    replies = [neighbour(0x80), neighbour(0x02), neighbour(0x80, 0x08)]
    assert rtnl.neighbours(replies) == [Known(2, ip_address("fd00::1"), MAC)]


@given(st.binary(max_size=200), st.sampled_from([16, 20, 24, 28]))
def test_an_answer_of_any_length_is_parsed_or_refused(body: bytes, kind: int) -> None:
    for parse in (rtnl.links, rtnl.routes, rtnl.networks, rtnl.neighbours):
        with contextlib.suppress(struct.error, ValueError):
            parse([Reply(kind, body)])
    with contextlib.suppress(struct.error, ValueError):
        rtnl.addresses([Reply(kind, body)], ())


def test_behind_a_router_everybody_else_is_beyond_it() -> None:
    seen = Seen(
        links=LINKS,
        addresses=[held("10.88.0.5/16"), held("fd00::5/64")],
        routes=[way("0.0.0.0/0", "10.88.0.1"), way("10.9.0.0/16", scope=253), way("::/0", "fd00::1", priority=1024)],
        neighbours=[Known(2, ip_address("10.88.0.1"), MAC)],
    )
    told = plan.interface(seen)
    assert told is not None
    made = plan.through_router(told, TAP.mac)
    assert (made.mac, made.mtu, made.addresses) == (MAC, 1450, ("10.88.0.5/32", "fd00::5/128"))
    assert [(one.destination, one.gateway, one.scope) for one in made.routes] == [
        ("169.254.254.254/32", "", 253),
        ("10.88.0.0/16", "169.254.254.254", 0),
        ("fd00::/64", "fe80::1", 0),
        ("10.9.0.0/16", "169.254.254.254", 0),
        ("0.0.0.0/0", "169.254.254.254", 0),
        ("::/0", "fe80::1", 0),
    ]
    assert made.neighbours == (
        Neighbour(address="169.254.254.254", mac=TAP.mac),
        Neighbour(address="fe80::1", mac=TAP.mac),
    )


def test_a_router_of_the_pods_own_network_is_no_way_beside_it() -> None:
    routes = [way("169.254.254.254/32", scope=253), way("0.0.0.0/0", "169.254.254.254")]
    told = plan.interface(Seen(links=LINKS, addresses=[held("10.1.2.3/32")], routes=routes))
    assert told is not None
    made = plan.through_router(told, TAP.mac)
    assert [(one.destination, one.gateway) for one in made.routes] == [
        ("169.254.254.254/32", ""),
        ("0.0.0.0/0", "169.254.254.254"),
    ]
