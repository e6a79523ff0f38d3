"""The rtnetlink messages of the well-known plugins, as those programs send them. Layout: linux/rtnetlink.h, if_link.h.

They differ from :mod:`forgeone_shim.network.links` where the programs' results do: queue lengths, broadcast addresses,
the protocol of routes, duplicate address detection.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Final

from forgeone_shim.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Reply,
    Request,
    attribute,
    attributes,
    nested,
    text,
    u32,
)
from forgeone_shim.network.cni.wellknown.conf import IpAddress

IpInterface = IPv4Interface | IPv6Interface

IFF_UP: Final = 0x1
IFF_PROMISC: Final = 0x100
OPER_UP: Final = 6
IFA_F_TENTATIVE: Final = 0x40
IFA_F_DADFAILED: Final = 0x08

RTM_NEWLINK, RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26

_AF: Final = {4: 2, 6: 10}
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_TXQLEN = 1, 3, 4, 5, 10, 13
_IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 16, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE, _VETH_INFO_PEER = 4, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 7, 15
RT_SCOPE_LINK, RT_SCOPE_HOST, _RT_SCOPE_NOWHERE = 253, 254, 255
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST, _RTM_F_CLONED = 254, 3, 1, 0x200

_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; ``peer`` is the index of a veth's other end, ``master`` that of its bridge or 0."""

    index: int
    name: str
    kind: str
    mtu: int
    mac: str
    flags: int
    state: int
    master: int
    peer: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address that an interface has."""

    index: int
    address: IpInterface
    flags: int


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A unicast route of the main table; without ``destination`` the default route."""

    destination: IpInterface | None
    gateway: IpAddress | None


def links(replies: Iterable[Reply]) -> list[Link]:
    """The interfaces among the kernel's answers."""
    return [_link(reply.body) for reply in replies if reply.type == RTM_NEWLINK]


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    items = attributes(body[_IFINFO.size :])
    info = attributes(items.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_string(items.get(_IFLA_IFNAME, b"")),
        kind=_string(info.get(_IFLA_INFO_KIND, b"")),
        mtu=_number(items.get(_IFLA_MTU, b"")),
        mac=items.get(_IFLA_ADDRESS, b"").hex(":"),
        flags=flags,
        state=_number(items.get(_IFLA_OPERSTATE, b"")),
        master=_number(items.get(_IFLA_MASTER, b"")),
        peer=_number(items.get(_IFLA_LINK, b"")),
    )


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def link(name: str = "", index: int = 0) -> Request:
    """Ask for one interface by name or index; ENODEV when there is none."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + (text(_IFLA_IFNAME, name) if name else b"")
    return Request(_RTM_GETLINK, 0, body, f"find link {name or index}")


def add_bridge(name: str, mtu: int) -> Request:
    """Make a bridge; EEXIST when something has its name."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + (u32(_IFLA_MTU, mtu) if mtu else b"")
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add bridge {name}")


def add_veth(host: str, mtu: int, netns: int, *, inside: str, mac: str = "", master: int = 0) -> Request:
    """Make a veth pair: ``host`` here, in bridge ``master`` if any, and ``inside`` in the namespace of ``netns``."""
    common = u32(_IFLA_TXQLEN, 0) + (u32(_IFLA_MTU, mtu) if mtu else b"")
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, inside) + common + u32(_IFLA_NET_NS_FD, netns)
    if mac:
        peer += attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, host) + common
    body += u32(_IFLA_MASTER, master) if master else b""
    data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {host} and {inside}")


def add_ifb(name: str, mtu: int) -> Request:
    """Make an interface that traffic is redirected to, up."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(_IFLA_IFNAME, name) + u32(_IFLA_TXQLEN, 0)
    body += u32(_IFLA_MTU, mtu) + nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "ifb"))
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add ifb {name}")


def start_port(name: str, *, hairpin: bool) -> Request:
    """Bring a bridge port up, in hairpin mode or not."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(_IFLA_IFNAME, name)
    data = nested(_IFLA_INFO_SLAVE_DATA, attribute(_IFLA_BRPORT_MODE, b"\1" if hairpin else b"\0"))
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_SLAVE_KIND, "bridge"), data)
    return Request(RTM_NEWLINK, 0, body, f"start bridge port {name}")


def set_flags(index: int, on: int, off: int = 0) -> Request:
    """Switch flags of an interface on and off."""
    return Request(RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, on, on | off), f"set flags of link {index}")


def set_mac(index: int, mac: str) -> Request:
    """Give an interface its MAC for good."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return Request(RTM_NEWLINK, 0, body, f"set MAC of link {index}")


def delete_link(index: int) -> Request:
    """Delete an interface; ENODEV when there is none."""
    return Request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0), f"delete link {index}")


def list_addresses(version: int = 0) -> Request:
    """Ask for all addresses, of one IP version or both."""
    body = _IFADDR.pack(_AF.get(version, 0), 0, 0, 0, 0)
    return Request(_RTM_GETADDR, NLM_F_DUMP, body, "list addresses")


def addresses(replies: Iterable[Reply], index: int) -> list[Address]:
    """The addresses of one interface among the kernel's answers, in its order."""
    found = [_address(reply.body) for reply in replies if reply.type == RTM_NEWADDR]
    return [item for item in found if item is not None and item.index == index]


def _address(body: bytes) -> Address | None:
    family, prefix, flags, _, index = _IFADDR.unpack_from(body)
    items = attributes(body[_IFADDR.size :])
    packed = items.get(_IFA_LOCAL) or items.get(_IFA_ADDRESS)
    if packed is None or family not in _AF.values():
        return None
    return Address(index, ip_interface((packed, prefix)), _number(items[_IFA_FLAGS]) if _IFA_FLAGS in items else flags)


def add_address(index: int, address: IpInterface) -> Request:
    """Give an interface an address; EEXIST when it has it."""
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _address_body(index, address), f"add address {address}")


def delete_address(index: int, address: IpInterface) -> Request:
    """Take an address from an interface."""
    return Request(_RTM_DELADDR, 0, _address_body(index, address), f"delete address {address}")


def _address_body(index: int, address: IpInterface) -> bytes:
    packed, prefix = address.ip.packed, address.network.prefixlen
    body = _IFADDR.pack(_AF[address.version], prefix, 0, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if address.version == 4 and prefix < 31:
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return body


def add_route(index: int, destination: IpInterface, gateway: IpAddress | None) -> Request:
    """Route to a network, through a gateway or straight; beside another to the same network, if there is one."""
    return Request(_RTM_NEWROUTE, NLM_F_CREATE, _route(index, destination, gateway), f"add route to {destination}")


def add_new_route(
    index: int,
    destination: IpInterface,
    gateway: IpAddress | None = None,
    *,
    scope: int = 0,
    source: IpAddress | None = None,
) -> Request:
    """Route to a network to which there is no route yet, else EEXIST; ``source`` is what packets are sent from."""
    body = _route(index, destination, gateway, scope) + (attribute(_RTA_PREFSRC, source.packed) if source else b"")
    return Request(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, f"add route to {destination}")


def delete_route(index: int, destination: IpInterface) -> Request:
    """Take away the route to a network by an interface."""
    prefix = destination.network.prefixlen
    body = _RTMSG.pack(_AF[destination.version], prefix, 0, 0, _RT_TABLE_MAIN, 0, _RT_SCOPE_NOWHERE, 0, 0)
    body += attribute(_RTA_DST, destination.ip.packed) + u32(_RTA_OIF, index)
    return Request(_RTM_DELROUTE, 0, body, f"delete route to {destination}")


def _route(index: int, destination: IpInterface, gateway: IpAddress | None, scope: int = 0) -> bytes:
    prefix = destination.network.prefixlen
    body = _RTMSG.pack(_AF[destination.version], prefix, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST, 0)
    body += attribute(_RTA_DST, destination.ip.packed)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    return body + u32(_RTA_OIF, index)


def route_to(address: IpAddress) -> Request:
    """Ask by which interface an address is reached."""
    body = _RTMSG.pack(_AF[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return Request(_RTM_GETROUTE, 0, body + attribute(_RTA_DST, address.packed), f"find the route to {address}")


def route_interface(replies: Iterable[Reply]) -> int:
    """The interface's index in the answer to :func:`route_to`; 0 when there is none."""
    for reply in replies:
        if reply.type == _RTM_NEWROUTE:
            return _number(attributes(reply.body[_RTMSG.size :]).get(_RTA_OIF, b""))
    return 0


def list_routes(version: int) -> Request:
    """Ask for all routes of one IP version."""
    return Request(_RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(_AF[version], 0, 0, 0, 0, 0, 0, 0, 0), "list routes")


def routes(replies: Iterable[Reply]) -> list[KernelRoute]:
    """The routes of the main table among the kernel's answers."""
    found: list[KernelRoute] = []
    for reply in replies:
        if reply.type != _RTM_NEWROUTE:
            continue
        _, prefix, _, _, table, _, _, _, flags = _RTMSG.unpack_from(reply.body)
        items = attributes(reply.body[_RTMSG.size :])
        if (_number(items[_RTA_TABLE]) if _RTA_TABLE in items else table) != _RT_TABLE_MAIN or flags & _RTM_F_CLONED:
            continue
        destination, gateway = items.get(_RTA_DST), items.get(_RTA_GATEWAY)
        found.append(
            KernelRoute(
                None if destination is None or not prefix else ip_interface((destination, prefix)),
                None if gateway is None else ip_address(gateway),
            )
        )
    return found
