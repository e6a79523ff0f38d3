"""What of a pod's network namespace is the guest's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from typing import Final

import msgspec

from engines.microvm.network import rtnl
from engines.microvm.network.rtnl import Held, Known, Link, Way
from engines.microvm.wire.messages import Interface, Neighbour, Route
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import taps

ROUTERS: Final = {4: "169.254.254.254", 6: "fe80::1"}
"""What a machine is told to send by where its packets pass this host's kernel.

The first is under which that tells of errors; one that is the machine's own would not be heard.
"""

_SCOPE_LINK: Final = 253
_MTU_LEAST: Final = 68
_MTU_MOST: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything that the kernel says of the namespace."""

    links: Sequence[Link] = ()
    addresses: Sequence[Held] = ()
    routes: Sequence[Way] = ()
    neighbours: Sequence[Known] = ()


def outer(links: Sequence[Link]) -> Link | None:
    """The interface by which the pod is on its network; ``None`` where it is on none.

    :raises FailedPrecondition: there are several, and a machine has one, or it is of no kind that a machine's can be.
    """
    up = [one for one in links if one.flags & rtnl.IFF_UP and not one.flags & rtnl.IFF_LOOPBACK]
    found = [one for one in up if one.name != taps.NAME]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise FailedPrecondition(
            f"the pod's network has the interfaces {names}; a machine has one", fix="use another runtime class"
        )
    if len(found[0].mac) != rtnl.MAC_BYTES:
        raise FailedPrecondition(f"the pod's interface {found[0].name} is not of Ethernet's kind, a machine's is")
    return found[0]


def tap(links: Sequence[Link]) -> Link:
    """The machine's side. :raises FailedPrecondition: it has gone, and the machine with it."""
    for one in links:
        if one.name == taps.NAME:
            return one
    raise FailedPrecondition("the machine of the pod has gone")


def interface(seen: Seen) -> Interface | None:
    """The machine's interface as the guest is told it; ``None`` for a pod without a network.

    What the guest's kernel makes by itself, as this one's does, is not in it: link-local addresses, the routes to the
    networks of its addresses. An address without such a route is the guest's as one of a network of its own.

    :raises FailedPrecondition: the pod is on its network in a way that a machine cannot be.
    """
    link = outer(seen.links)
    if link is None:
        return None
    held = [one for one in seen.addresses if one.link == link.index and not one.address.is_link_local]
    ways = [one for one in seen.routes if one.link == link.index]
    for one in seen.routes:
        if one.strange and one.link in (0, link.index):
            raise FailedPrecondition(
                f"the pod's route to {one.destination} has {one.strange}, which a machine's has not"
            )
    addresses = tuple(dict.fromkeys(_address(one) for one in held))
    mtu = min([link.mtu, *(way.mtu for way in ways if way.mtu)])
    return Interface(
        name=link.name,
        mac=link.mac,
        mtu=max(_MTU_LEAST, min(mtu, _MTU_MOST)),
        addresses=addresses,
        routes=tuple(_routes(ways, addresses)),
        neighbours=tuple(
            Neighbour(address=str(one.address), mac=one.mac)
            for one in seen.neighbours
            if one.link == link.index and len(one.mac) == rtnl.MAC_BYTES
        ),
    )


def through_router(told: Interface, mac: bytes) -> Interface:
    """The same with everybody else beyond a router, whose ``mac`` is known: nothing is asked on the link itself."""
    held = [ip_interface(one) for one in told.addresses]
    ways = [Route(destination=str(one.network)) for one in held if one.network.prefixlen < one.max_prefixlen]
    ways += told.routes
    versions = sorted({one.version for one in held})
    routes = [Route(destination=f"{ROUTERS[4]}/32", scope=_SCOPE_LINK)] if 4 in versions else []
    for one in ways:
        version = ip_network(one.destination).version
        if version in versions and one.destination != f"{ROUTERS[4]}/32":
            routes.append(msgspec.structs.replace(one, gateway=ROUTERS[version], scope=0))
    return Interface(
        name=told.name,
        mac=told.mac,
        mtu=told.mtu,
        addresses=tuple(f"{one.ip}/{one.max_prefixlen}" for one in held),
        routes=tuple(dict.fromkeys(routes)),
        neighbours=tuple(Neighbour(address=ROUTERS[version], mac=mac) for version in versions),
    )


def _address(one: Held) -> str:
    return str(one.address) if one.routed else f"{one.address.ip}/{one.address.max_prefixlen}"


def _routes(ways: Sequence[Way], addresses: Sequence[str]) -> Iterator[Route]:
    """In an order in which each can be made: a gateway has to be reached by one before."""
    reached = [ip_interface(one).network for one in addresses]
    straight = [way for way in ways if way.gateway is None]
    through = [way for way in ways if way.gateway is not None]
    made: list[Way] = []
    for way in through:
        gateway = way.gateway
        if not way.onlink or gateway is None or gateway.is_link_local:
            continue
        known = [*reached, *(one.destination for one in (*straight, *made))]
        if not any(gateway.version == one.version and gateway in one for one in known):
            # As good as the kernel's word that it is on the link, for which there is none on the wire.
            made.append(replace(way, destination=ip_network(gateway), gateway=None, scope=_SCOPE_LINK, priority=0))
    for way in (*straight, *made, *sorted(through, key=lambda one: -one.destination.prefixlen)):
        yield Route(
            destination=str(way.destination),
            gateway=str(way.gateway or ""),
            scope=way.scope,
            source=str(way.source or ""),
            priority=way.priority,
        )
