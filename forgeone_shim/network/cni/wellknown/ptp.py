"""The plugin ``ptp``: a container and the host, each at one end of a link that no other container is on.

The container reaches its own network, too, through the host. https://www.cni.dev/plugins/current/main/ptp/
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import NotFound
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import Netlink, NetlinkError
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import hostlocal, inside, masquerade, ranges, result, rtnl, veth
from forgeone_shim.network.cni.wellknown.conf import Fields, IpAddress, Network, Unsupported, network
from forgeone_shim.network.cni.wellknown.forwarding import forward
from forgeone_shim.network.cni.wellknown.inside import Inside, configure
from forgeone_shim.network.cni.wellknown.result import INTERNAL, Interface, Ip, IpInterface, Result
from forgeone_shim.network.cni.wellknown.rtnl import Link

_MTU_MAX: Final = 65535
# The container's interface among those of the result: behind the host's end.
_INSIDE: Final = 1


@dataclass(frozen=True, slots=True)
class Ptp:
    """What is configured of ptp."""

    network: Network
    masquerade: bool
    mtu: int
    ipam: ranges.Ipam


def read(config: Mapping[str, Any]) -> Ptp:
    """The configuration of ptp.

    :raises Unsupported: for what is left to the program, everything it would refuse included.
    """
    fields = Fields(config)
    about = network(fields)
    args, runtime, ipam = fields.child("args"), fields.child("runtimeConfig"), fields.child("ipam")
    told = args.child("cni")
    ptp = Ptp(about, fields.flag("ipMasq"), fields.number("mtu", 0, _MTU_MAX), ranges.read(ipam, about, told, runtime))
    if ptp.masquerade and not masquerade.is_possible():
        raise Unsupported("ipMasq")
    for part in (ipam, told, args, runtime, fields):
        part.done()
    return ptp


def run(ptp: Ptp, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    match invocation.command:
        case Command.ADD:
            return result.render(_add(ptp, invocation, deadline), ptp.network.version)
        case Command.DEL:
            _delete(ptp, invocation, deadline)
        case Command.CHECK:
            _check(ptp, invocation, deadline)
        case Command.GC:
            hostlocal.collect(ptp.ipam, invocation, deadline)
        case Command.STATUS:
            pass
    return {}


def _add(ptp: Ptp, invocation: Invocation, deadline: Deadline) -> Result:
    name, container_id, netns_path = ptp.network.name, invocation.container_id, invocation.netns
    with ExitStack() as undo, ExitStack() as open_files:
        netns = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
        open_files.callback(os.close, netns)
        netlink = open_files.enter_context(Netlink())
        leased = hostlocal.add(ptp.ipam, invocation, deadline)
        undo.callback(hostlocal.delete, ptp.ipam, invocation, Deadline())
        ips = tuple(replace(ip, interface=_INSIDE) for ip in leased.ips)
        forward({ip.address.version for ip in ips})
        deadline.check("before the container's interface")
        host_name = veth.make(netlink, netns, invocation.ifname, mtu=ptp.mtu)
        undo.callback(veth.delete, host_name)
        end = rtnl.links(netlink.ask(rtnl.link(host_name)))[0]
        netlink.ask(rtnl.set_flags(end.index, rtnl.IFF_UP))
        veth.refuse_router_advertisements(host_name)
        wanted = Inside(invocation.ifname, ips, leased.routes, None)
        mac = run_in(netns_path, lambda: _configure(wanted, deadline))
        _configure_host(netlink, end, ips)
        if ptp.masquerade:
            addresses = [ip.address for ip in ips]
            undo.callback(masquerade.remove, name, container_id, addresses, Deadline())
            masquerade.add(name, container_id, addresses, deadline)
        undo.pop_all()
    interfaces = (Interface(end.name, end.mac), Interface(invocation.ifname, mac, netns_path))
    return Result(interfaces, ips, leased.routes, ptp.network.dns)


def _one(address: IpAddress) -> IpInterface:
    """An address as a network of its own."""
    return ip_interface((address.packed, address.max_prefixlen))


def _configure(wanted: Inside, deadline: Deadline) -> str:
    """Inside the container: its network is not on the link, but behind the host. Returns the interface's MAC."""
    mac = configure(wanted, deadline, with_addresses=True)
    with Netlink() as netlink:
        index = rtnl.links(netlink.ask(rtnl.link(wanted.name)))[0].index
        for ip in wanted.ips:
            if ip.gateway is None:
                continue
            whole = ip_interface(str(ip.address.network))
            netlink.ask(
                rtnl.delete_route(index, whole),
                rtnl.add_new_route(index, _one(ip.gateway), scope=rtnl.RT_SCOPE_LINK, source=ip.address.ip),
                rtnl.add_new_route(index, whole, ip.gateway, source=ip.address.ip),
            )
    return mac


def _configure_host(netlink: Netlink, end: Link, ips: tuple[Ip, ...]) -> None:
    for ip in ips:
        if ip.gateway is None:
            continue
        netlink.ask(rtnl.add_address(end.index, _one(ip.gateway)))
        try:
            netlink.ask(rtnl.add_new_route(end.index, _one(ip.address.ip), scope=rtnl.RT_SCOPE_HOST))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise


def _delete(ptp: Ptp, invocation: Invocation, deadline: Deadline) -> None:
    addresses: list[IpInterface] = []
    if invocation.netns:
        with suppress(NotFound):
            addresses = run_in(invocation.netns, lambda: inside.remove(invocation.ifname))
    hostlocal.delete(ptp.ipam, invocation, deadline)
    if ptp.masquerade:
        masquerade.remove(ptp.network.name, invocation.container_id, addresses, deadline)


def _check(ptp: Ptp, invocation: Invocation, deadline: Deadline) -> None:
    hostlocal.check(ptp.ipam, invocation, deadline)
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "ptp: Required prevResult missing")
    told = [item for item in before.interfaces if (item.name, item.sandbox) == (invocation.ifname, invocation.netns)]
    if not told:
        raise CniError(INTERNAL, f"prevResult lacks interface {invocation.ifname}")
    run_in(invocation.netns, lambda: _check_inside(told[-1], before))


def _check_inside(told: Interface, before: Result) -> None:
    with Netlink() as netlink:
        try:
            link = rtnl.links(netlink.ask(rtnl.link(told.name)))[0]
        except NetlinkError as error:
            raise CniError(INTERNAL, f"ptp: Container Interface name in prevResult: {told.name} not found") from error
    if link.kind != "veth" or (told.mac and told.mac != link.mac):
        raise CniError(INTERNAL, f"ptp: Container interface {told.name} is not the veth {told.mac}")
    inside.check(told.name, before)
