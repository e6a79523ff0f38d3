"""The host's side of the pod network and a pod's way into it, as steps on the kernel. Thin: what to do is planned."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.errors import FailedPrecondition, NotFound, syscall_error
from forgeone_shim.kernel.namespaces import raise_loopback, run_in, write_proc
from forgeone_shim.kernel.netlink import MAX_REQUESTS, Netlink, NetlinkError
from forgeone_shim.network import host, links
from forgeone_shim.network.ipam import Intent
from forgeone_shim.network.plan import POD_INTERFACE, Layout, mac_address, parse_interface

_MTU_WITHOUT_DEFAULT_ROUTE = 1500


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge as it stands."""

    index: int
    mtu: int


def find_bridge(netlink: Netlink, layout: Layout) -> Bridge | None:
    """The bridge if it is there and up.

    :raises FailedPrecondition: something else has its name.
    """
    try:
        link = links.parse_links(netlink.ask(links.get_link(layout.bridge)))[0]
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    if link.kind != "bridge":
        raise FailedPrecondition(
            f"network interface {layout.bridge} is {link.kind or 'a device'}, not a bridge",
            fix="give [network] bridge another name",
        )
    return Bridge(link.index, link.mtu) if link.up else None


def ensure_bridge(layout: Layout) -> Bridge:
    """Make the bridge, or make it right again: up, with its addresses, forwarding on. Raises OSError."""
    host.enable_forwarding(ipv6=layout.ipv6 is not None)
    with Netlink() as netlink:
        mtu = layout.mtu or _default_mtu(netlink)
        try:
            netlink.ask(links.add_bridge(layout.bridge, mac_address(layout.gateway.ipv4), mtu))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        link = links.parse_links(netlink.ask(links.get_link(layout.bridge)))[0]
        if link.kind != "bridge":
            find_bridge(netlink, layout)
        # IPv6 starts on a bridge when it is up, and cannot have an address on a smaller MTU: then these settings.
        if layout.ipv6 is not None:
            for name, value in (("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")):
                host.ensure_sysctl(f"{host.IPV6_CONF}/{layout.bridge}/{name}", value)
        # Without it the kernel takes a packet from 127.0.0.1 to a pod, and its answer, for a forgery.
        host.ensure_sysctl(f"{host.IPV4_CONF}/{layout.bridge}/route_localnet", "1")
        netlink.ask(
            links.set_mtu(link.index, mtu),
            links.set_up(link.index),
            *(links.add_address(link.index, address) for address in layout.gateway.all),
        )
    return Bridge(link.index, mtu)


def _default_mtu(netlink: Netlink) -> int:
    device = host.default_route_device()
    if not device:
        return _MTU_WITHOUT_DEFAULT_ROUTE
    with suppress(NetlinkError):
        return links.parse_links(netlink.ask(links.get_link(device)))[0].mtu
    return _MTU_WITHOUT_DEFAULT_ROUTE


def link_is_there(name: str) -> bool:
    """Whether an interface exists. Raises OSError."""
    with Netlink() as netlink:
        try:
            netlink.ask(links.get_link(name))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
    return True


def plug(netlink: Netlink, bridge: Bridge, intent: Intent, alias: str) -> None:
    """Make the pod's veth pair, one end in the bridge, the other inside the pod.

    :raises NotFound: the pod's network namespace is gone.
    """
    try:
        netns = os.open(intent.netns, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("network namespace", intent.netns) from None
    except OSError as error:
        raise syscall_error("open", intent.netns, error) from error
    try:
        netlink.ask(
            links.add_veth(intent.link, bridge.index, bridge.mtu, netns, peer=POD_INTERFACE, peer_mac=intent.mac),
            links.start_port(intent.link, alias, ipv6=Path(host.IPV6_CONF).exists()),
        )
    finally:
        os.close(netns)


def configure_pod(intent: Intent, layout: Layout) -> tuple[str, ...]:
    """Give the pod's end its addresses and default routes; returns the addresses (without prefix length) it has.

    A pod that switched IPv6 off by sysctl gets IPv4 only. Raises OSError, or NotFound for a namespace that is gone.
    """
    gateways = {gateway.version: str(gateway.ip) for gateway in layout.gateway.all}
    addresses = [parse_interface(address) for address in intent.addresses]

    def inside() -> tuple[str, ...]:
        conf = f"{host.IPV6_CONF}/{POD_INTERFACE}"
        wanted = addresses
        if host.read_sysctl(f"{conf}/disable_ipv6") == "0":
            # An address is usable at once, and only we say which addresses there are.
            write_proc(f"{conf}/accept_dad", "0")
            write_proc(f"{conf}/accept_ra", "0")
        else:
            wanted = [address for address in addresses if address.version == 4]
        raise_loopback()
        index = socket.if_nametoindex(POD_INTERFACE)
        with Netlink() as netlink:
            netlink.ask(
                links.set_up(index),
                *(links.add_address(index, address) for address in wanted),
                *(links.add_default_route(index, gateways[address.version]) for address in wanted),
            )
        return tuple(str(address.ip) for address in wanted)

    return run_in(intent.netns, inside)


def unplug(names: Sequence[str]) -> None:
    """Delete pods' links by their host ends; missing ones are no error. Raises OSError.

    The kernel waits for several grace periods (15 ms) for one deletion or many, so many are made one.
    """
    group = secrets.randbits(30) | 1 << 30
    requests = [links.delete_link(name) for name in names]
    if len(names) > 1:
        requests = [*(links.set_group(name, group) for name in names), links.delete_group(group)]
    with Netlink() as netlink:
        for start in range(0, len(requests), MAX_REQUESTS):
            for error in netlink.try_all(requests[start : start + MAX_REQUESTS])[1]:
                # An empty group is EINVAL to some kernels.
                if error.errno not in (errno.ENODEV, errno.EINVAL):
                    raise error


def delete_bridge(name: str) -> None:
    """Delete the bridge; a missing one is no error. Raises OSError."""
    unplug([name])
