"""What the plugins that make an interface do inside a container's network namespace. Runs in a thread that is there."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.namespaces import write_proc
from forgeone_shim.kernel.netlink import MAX_REQUESTS, Netlink, NetlinkError, Request
from forgeone_shim.network import host
from forgeone_shim.network.cni.plugin import CniError
from forgeone_shim.network.cni.wellknown import rtnl
from forgeone_shim.network.cni.wellknown.conf import IpAddress
from forgeone_shim.network.cni.wellknown.result import INTERNAL, Ip, IpInterface, Result, Route
from forgeone_shim.network.cni.wellknown.rtnl import Link
from forgeone_shim.network.cni.wellknown.watch import IPV6_ADDRESSES, Watch

_SETTLE_SECONDS: Final = 10.0
_UNSETTLED: Final = rtnl.IFA_F_TENTATIVE | rtnl.IFA_F_DADFAILED
_BROADCAST: Final = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Inside:
    """What an interface is to have; ``detect_duplicates`` is ``None`` where the kernel's settings stay as they are."""

    name: str
    ips: tuple[Ip, ...]
    routes: tuple[Route, ...]
    detect_duplicates: bool | None


def configure(inside: Inside, deadline: Deadline, *, with_addresses: bool) -> str:
    """Bring the interface up with all it is to have; returns its MAC. Raises OSError."""
    with Netlink() as netlink:
        link = rtnl.links(netlink.ask(rtnl.link(inside.name)))[0]
        if not with_addresses:
            netlink.ask(rtnl.set_flags(link.index, rtnl.IFF_UP))
            return link.mac
        _set_sysctls(inside)
        with Watch(IPV6_ADDRESSES, link.index) as watch:
            _ask_all(netlink, [rtnl.add_address(link.index, ip.address) for ip in inside.ips])
            netlink.ask(rtnl.set_flags(link.index, rtnl.IFF_UP))
            if any(ip.gateway is not None and ip.gateway.version == 6 for ip in inside.ips):
                # An address that stays unsettled is no error to the program either.
                watch.until(lambda: _settled(netlink, link), deadline.remaining(_SETTLE_SECONDS) or 0)
        _ask_all(netlink, [_route(link, route, inside.ips) for route in inside.routes])
    return link.mac


def _set_sysctls(inside: Inside) -> None:
    if inside.detect_duplicates is not None:
        conf = f"{host.IPV6_CONF}/{inside.name}"
        settings = [(f"{conf}/accept_dad", "1" if inside.detect_duplicates else "0")]
        if inside.detect_duplicates:
            settings.append((f"{conf}/enhanced_dad", "1"))
        settings.append((f"{host.IPV4_CONF}/{inside.name}/arp_notify", "1"))
        for path, value in settings:
            # As good as it gets on this kernel.
            with suppress(OSError):
                write_proc(path, value)
    if any(ip.address.version == 6 for ip in inside.ips):
        for name in ("lo", inside.name):
            host.ensure_sysctl(f"{host.IPV6_CONF}/{name}/disable_ipv6", "0")


def _settled(netlink: Netlink, link: Link) -> bool:
    listed = rtnl.addresses(netlink.ask(rtnl.list_addresses(6)), link.index)
    return not any(address.flags & _UNSETTLED for address in listed)


def _route(link: Link, route: Route, ips: Sequence[Ip]) -> Request:
    gateway = route.gateway
    if gateway is None:
        version = route.destination.version
        gateway = next((ip.gateway for ip in ips if ip.gateway is not None and ip.gateway.version == version), None)
    return rtnl.add_route(link.index, route.destination, gateway)


def _ask_all(netlink: Netlink, requests: Sequence[Request]) -> None:
    for start in range(0, len(requests), MAX_REQUESTS):
        netlink.ask(*requests[start : start + MAX_REQUESTS])


def remove(name: str) -> list[IpInterface]:
    """Delete an interface; returns the addresses it had in the world. A missing one is no error. Raises OSError."""
    with Netlink() as netlink:
        try:
            link = rtnl.links(netlink.ask(rtnl.link(name)))[0]
            listed = rtnl.addresses(netlink.ask(rtnl.list_addresses()), link.index)
            netlink.ask(rtnl.delete_link(link.index))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return []
            raise
    return [item.address for item in listed if _is_global_unicast(item.address.ip)]


def _is_global_unicast(address: IpAddress) -> bool:
    special = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not special and address != _BROADCAST


def check(name: str, before: Result) -> None:
    """Whether the interface has the addresses and routes of a result.

    :raises CniError: it has not.
    """
    with Netlink() as netlink:
        link = rtnl.links(netlink.ask(rtnl.link(name)))[0]
        has = {item.address for item in rtnl.addresses(netlink.ask(rtnl.list_addresses()), link.index)}
        routes = [*rtnl.routes(netlink.ask(rtnl.list_routes(4))), *rtnl.routes(netlink.ask(rtnl.list_routes(6)))]
    for ip in before.ips:
        if ip.address not in has:
            raise CniError(INTERNAL, f"Failed to match addr {ip.address} on interface {name}")
        if not any(route.destination and route.destination.network == ip.address.network for route in routes):
            raise CniError(INTERNAL, f"Failed to find Gateway {ip.gateway} for interface {name}")
    for wanted in before.routes:
        network = wanted.destination.network if wanted.destination.network.prefixlen else None
        same = [
            route
            for route in routes
            if (route.destination.network if route.destination is not None else None) == network
        ]
        if not any(wanted.gateway in (None, route.gateway) or network is None for route in same):
            raise CniError(INTERNAL, f"Expected Route {wanted.destination} via {wanted.gateway} not found")
