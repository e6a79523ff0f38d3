"""A bridge of the host and its ports, as the plugin ``bridge`` makes and checks them. Everything raises OSError."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import Netlink, NetlinkError
from forgeone_shim.network.cni.plugin import CniError
from forgeone_shim.network.cni.wellknown import inside, rtnl, veth
from forgeone_shim.network.cni.wellknown.result import INTERNAL, Interface, IpInterface, Result
from forgeone_shim.network.cni.wellknown.rtnl import Link
from forgeone_shim.network.cni.wellknown.watch import LINKS, Watch
from forgeone_shim.network.links import delete_link

# What the program grants a port in all.
_PORT_SECONDS: Final = 2.55


@dataclass(frozen=True, slots=True)
class Port:
    """How a container is to be plugged in; ``mtu`` 0 and ``mac`` "" are the kernel's choice."""

    hairpin: bool
    mtu: int
    mac: str = ""


def find(netlink: Netlink, name: str) -> Link:
    """The bridge of that name.

    :raises CniError: something else has it.
    """
    link = rtnl.links(netlink.ask(rtnl.link(name)))[0]
    if link.kind != "bridge":
        raise CniError(INTERNAL, f'failed to create bridge "{name}": "{name}" already exists but is not a bridge')
    return link


def ensure(netlink: Netlink, name: str, mtu: int, *, promiscuous: bool) -> Link:
    """The bridge, made if there is none, and up."""
    try:
        link = find(netlink, name)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        try:
            netlink.ask(rtnl.add_bridge(name, mtu))
        except NetlinkError as refused:
            if refused.errno != errno.EEXIST:
                raise
        link = find(netlink, name)
    flags = rtnl.IFF_UP | (rtnl.IFF_PROMISC if promiscuous else 0)
    veth.refuse_router_advertisements(name)
    if link.flags & flags != flags:
        netlink.ask(rtnl.set_flags(link.index, flags))
    return link


def add_port(netlink: Netlink, bridge: Link, netns: int, ifname: str, port: Port) -> Link:
    """Plug a namespace, given as a descriptor, into the bridge; returns the host's end, which is up.

    :raises CniError: the namespace has an interface of that name.
    """
    name = veth.make(netlink, netns, ifname, mtu=port.mtu, mac=port.mac, master=bridge.index)
    try:
        netlink.ask(rtnl.start_port(name, hairpin=port.hairpin))
        veth.refuse_router_advertisements(name)
        return rtnl.links(netlink.ask(rtnl.link(name)))[0]
    except BaseException:
        netlink.try_all([delete_link(name)])
        raise


def wait_for_port(netlink: Netlink, port: Link, deadline: Deadline) -> None:
    """Wait until packets get through a port.

    :raises CniError: they do not.
    """

    def is_up() -> bool:
        return rtnl.links(netlink.ask(rtnl.link(port.name)))[0].state == rtnl.OPER_UP

    if is_up():
        return
    with Watch(LINKS, port.index) as watch:
        if not watch.until(is_up, deadline.remaining(_PORT_SECONDS) or 0):
            deadline.check(f"waiting for bridge port {port.name}")
            raise CniError(INTERNAL, f"bridge port in error state: {port.name} is not up")


def ensure_address(netlink: Netlink, link: Link, address: IpInterface, *, force: bool) -> None:
    """Give an interface of the host an address, instead of others in its way if ``force`` says so.

    :raises CniError: others are in its way.
    """
    for other in rtnl.addresses(netlink.ask(rtnl.list_addresses(address.version)), link.index):
        has = other.address
        if has == address:
            return
        if address.version == 4 or address.ip in has.network or has.ip in address.network:
            if not force:
                what = f'failed to set bridge addr: "{link.name}" already has an IP address different from {address}'
                raise CniError(INTERNAL, what)
            netlink.ask(rtnl.delete_address(link.index, has))
    try:
        netlink.ask(rtnl.add_address(link.index, address))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    # Or the bridge takes the lowest MAC of its ports, which come and go.
    netlink.ask(rtnl.set_mac(link.index, link.mac))


def check(name: str, before: Result, ifname: str, netns: str, *, promiscuous: bool) -> None:
    """Whether the bridge, the container's interface and the host's end are still what a result says.

    :raises CniError: they are not.
    """
    told_bridge = next((item for item in reversed(before.interfaces) if item.name == name), None)
    told_inside = next(
        (item for item in reversed(before.interfaces) if item.name == ifname and item.sandbox == netns), None
    )
    if told_bridge is None or told_inside is None:
        raise CniError(INTERNAL, f"prevResult lacks interface {name if told_bridge is None else ifname}")

    def look_inside() -> Link:
        with Netlink() as netlink:
            link = _find(netlink, told_inside)
        if link.kind != "veth":
            raise CniError(INTERNAL, f"Error: Container interface {link.name} not of type veth")
        inside.check(ifname, before)
        return link

    with Netlink() as netlink:
        bridge = _find(netlink, told_bridge)
        if bridge.kind != "bridge":
            raise CniError(INTERNAL, f"Interface {name} does not have link type of bridge")
        if bool(bridge.flags & rtnl.IFF_PROMISC) != promiscuous:
            raise CniError(INTERNAL, f"Bridge interface {name} configured Promisc Mode {promiscuous} is not")
        container = run_in(netns, look_inside)
        others = [item for item in before.interfaces if not item.sandbox and item.name != name]
        for port in (_find(netlink, item) for item in others):
            if port.index == container.peer and port.peer == container.index and port.master == bridge.index:
                return
    raise CniError(INTERNAL, f"CNI veth created for bridge {name} was not found")


def _find(netlink: Netlink, told: Interface) -> Link:
    try:
        link = rtnl.links(netlink.ask(rtnl.link(told.name)))[0]
    except NetlinkError as error:
        raise CniError(INTERNAL, f"Interface name {told.name} not found") from error
    if told.mac and told.mac != link.mac:
        raise CniError(INTERNAL, f"Interface {told.name} Mac {told.mac} doesn't match: {link.mac}")
    return link
