"""The rtnetlink messages of a pod network, each built by one pure function. Layout: linux/rtnetlink.h, if_link.h."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Final

from forgeone_shim.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Reply,
    Request,
    attribute,
    attributes,
    nested,
    text,
    u32,
)

Interface = IPv4Interface | IPv6Interface

IFF_UP: Final = 0x1

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE = 20, 22, 24

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_IFLA_IFALIAS = 20
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE = 4
_VETH_INFO_PEER = 1
_IFLA_AF_SPEC, _IFLA_GROUP = 26, 27
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02

_RTA_GATEWAY, _RTA_OIF = 5, 4
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 4, 0, 1

_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_AF = {4: 2, 6: 10}


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it; ``master`` is the index of its bridge or 0."""

    index: int
    name: str
    kind: str
    mtu: int
    mac: str
    up: bool
    master: int


def parse_links(replies: Iterable[Reply]) -> list[Link]:
    """The interfaces among the kernel's answers."""
    return [_parse_link(reply.body) for reply in replies if reply.type == _RTM_NEWLINK]


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    items = attributes(body[_IFINFO.size :])
    info = attributes(items.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=items.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(),
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        mtu=_number(items.get(_IFLA_MTU, b"")),
        mac=items.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
        master=_number(items.get(_IFLA_MASTER, b"")),
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def get_link(name: str) -> Request:
    """Ask for one interface; ENODEV when there is none."""
    return Request(_RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name), f"find link {name}")


def list_links() -> Request:
    """Ask for all interfaces."""
    return Request(_RTM_GETLINK, NLM_F_DUMP, _IFINFO.pack(0, 0, 0, 0, 0), "list links")


def add_bridge(name: str, mac: str, mtu: int) -> Request:
    """Make a bridge that is up. A MAC of its own keeps it from following its ports' ones."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, _mac(mac))
    body += u32(_IFLA_MTU, mtu) + nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add bridge {name}")


def add_veth(name: str, bridge_index: int, mtu: int, netns_fd: int, *, peer: str, peer_mac: str) -> Request:
    """Make a veth pair: one end in the bridge, its peer born inside the network namespace, both down."""
    inside = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, peer) + attribute(_IFLA_ADDRESS, _mac(peer_mac))
    inside += u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, netns_fd)
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu)
    body += u32(_IFLA_MASTER, bridge_index)
    body += nested(
        _IFLA_LINKINFO,
        text(_IFLA_INFO_KIND, "veth"),
        nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, inside)),
    )
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {name}")


def start_port(name: str, alias: str, *, ipv6: bool) -> Request:
    """Bring a bridge port up, in hairpin mode and without an IPv6 address of its own; ``alias`` is for people.

    Hairpin mode lets a frame go back where it came from: br_netfilter turns a pod's call to itself, through a service,
    into one.
    """
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(_IFLA_IFNAME, name)
    body += text(_IFLA_IFALIAS, alias)
    body += nested(
        _IFLA_LINKINFO,
        text(_IFLA_INFO_SLAVE_KIND, "bridge"),
        nested(_IFLA_INFO_SLAVE_DATA, attribute(_IFLA_BRPORT_MODE, b"\1")),
    )
    if ipv6:
        mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
        body += nested(_IFLA_AF_SPEC, nested(_AF[6], mode))
    return Request(_RTM_NEWLINK, 0, body, f"start bridge port {name}")


def set_mtu(index: int, mtu: int) -> Request:
    """Set an interface's MTU."""
    return Request(_RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + u32(_IFLA_MTU, mtu), f"set MTU of link {index}")


def set_up(index: int) -> Request:
    """Bring an interface up."""
    return Request(_RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP), f"set link {index} up")


def delete_link(name: str) -> Request:
    """Delete an interface (of a veth pair both ends); ENODEV when there is none."""
    return Request(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name), f"delete link {name}")


def set_group(name: str, group: int) -> Request:
    """Put an interface into a group; ENODEV when there is none."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_GROUP, group)
    return Request(_RTM_NEWLINK, 0, body, f"set group of link {name}")


def delete_group(group: int) -> Request:
    """Delete every interface of a group, for little more than the price of one; ENODEV when there is none."""
    return Request(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + u32(_IFLA_GROUP, group), f"delete links {group}")


def add_address(index: int, address: Interface) -> Request:
    """Give an interface an address, without duplicate address detection; one it already has is no error."""
    packed = address.ip.packed
    flags = _IFA_F_NODAD if address.version == 6 else 0
    body = _IFADDR.pack(_AF[address.version], address.network.prefixlen, flags, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed) + u32(_IFA_FLAGS, flags)
    return Request(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {address}")


def list_addresses() -> Request:
    """Ask for the addresses of all interfaces."""
    return Request(_RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses")


def parse_addresses(replies: Iterable[Reply]) -> list[IPv4Address | IPv6Address]:
    """The addresses among the kernel's answers."""
    found = []
    for reply in replies:
        if reply.type == _RTM_NEWADDR and reply.body[0] in _AF.values():
            items = attributes(reply.body[_IFADDR.size :])
            packed = items.get(_IFA_LOCAL) or items.get(_IFA_ADDRESS)
            if packed:
                found.append(ip_address(packed))
    return found


def add_default_route(index: int, gateway: str) -> Request:
    """Route everything else through ``gateway`` on this interface."""
    address = ip_address(gateway)
    body = _RTMSG.pack(
        _AF[address.version], 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0
    )
    body += attribute(_RTA_GATEWAY, address.packed) + u32(_RTA_OIF, index)
    return Request(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add default route via {gateway}")


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))
