"""What the kernel says of a network namespace: interfaces, addresses, routes, neighbours. Pure.

Layout: linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final

from forgeone_shim.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Reply,
    Request,
    attribute,
    attributes,
    nested,
    u32,
)

IFF_UP, IFF_LOOPBACK = 0x1, 0x8
MAC_BYTES: Final = 6

_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_RTM_NEWRULE, _RTM_DELRULE = 32, 33

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_AF_SPEC = 1, 3, 4, 26
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 8, 9, 15, 18, 30
_RTAX_MTU: Final = 2
_RT_TABLE_COMPAT, _RTPROT_STATIC, _RT_SCOPE_LINK = 252, 4, 253
_FR_ACT_TO_TBL, _FRA_PRIORITY, _FRA_TABLE = 1, 6, 15
_RT_TABLE_MAIN, _RTN_UNICAST, _RTM_F_CLONED, _RTNH_F_ONLINK = 254, 1, 0x200, 0x4
_RTPROT_KERNEL, _RTPROT_RA = 2, 9
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT, _NTF_PROXY = 0x80, 0x08
_AF: Final = {2: 4, 10: 6}
_FAMILY: Final = {4: 2, 6: 10}
TABLE_LOCAL: Final = 255
_AF_INET6: Final = 10

_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BxxxiHBB")

Address = IPv4Address | IPv6Address
AddressOfLink = IPv4Interface | IPv6Interface
Range = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; ``mac`` is empty where it has none."""

    index: int
    name: str
    mtu: int
    mac: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class Held:
    """An address of an interface; ``routed`` says whether the kernel itself routes its network there.

    Not where it was told not to, nor where somebody has removed that route, as the plugin ``ptp`` does.
    """

    link: int
    address: AddressOfLink
    routed: bool


@dataclass(frozen=True, slots=True)
class Way:
    """A unicast route of the main table that somebody has made; ``strange``: what it has that is not known here.

    ``priority`` and ``mtu`` are 0 where none was given. ``link`` is the index of its interface.
    """

    link: int
    destination: Range
    gateway: Address | None = None
    scope: int = 0
    source: Address | None = None
    priority: int = 0
    onlink: bool = False
    mtu: int = 0
    strange: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A neighbour that somebody has told the kernel of for good."""

    link: int
    address: Address
    mac: bytes


def ask_links() -> Request:
    """All interfaces."""
    return Request(_RTM_GETLINK, NLM_F_DUMP, _IFINFO.pack(0, 0, 0, 0, 0), "list links")


def ask_addresses() -> Request:
    """All addresses."""
    return Request(_RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses")


def ask_routes() -> Request:
    """All routes."""
    return Request(_RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "list routes")


def ask_neighbours() -> Request:
    """All neighbours."""
    return Request(_RTM_GETNEIGH, NLM_F_DUMP, _NDMSG.pack(0, 0, 0, 0, 0), "list neighbours")


def start(link: int, mtu: int) -> Request:
    """Bring an interface up, with an MTU."""
    body = _IFINFO.pack(0, 0, link, IFF_UP, IFF_UP) + u32(_IFLA_MTU, mtu)
    return Request(_RTM_SETLINK, 0, body, f"start link {link}")


def silence(link: int) -> Request:
    """No IPv6 address of the kernel's own making, so that it sends nothing under one."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_MODE_NONE]))
    body = _IFINFO.pack(0, 0, link, 0, 0) + nested(_IFLA_AF_SPEC, nested(_AF_INET6, mode))
    return Request(_RTM_SETLINK, 0, body, f"no IPv6 address for link {link}")


def add_rule(version: int, priority: int, table: int) -> Request:
    """Look up where packets go in a table, in its turn."""
    return Request(_RTM_NEWRULE, NLM_F_CREATE, _rule(version, priority, table), f"look up routes in table {table}")


def delete_rule(version: int, priority: int, table: int) -> Request:
    """Undo :func:`add_rule`."""
    return Request(_RTM_DELRULE, 0, _rule(version, priority, table), f"no look-up of routes in table {table}")


def _rule(version: int, priority: int, table: int) -> bytes:
    body = _RTMSG.pack(_FAMILY[version], 0, 0, 0, _RT_TABLE_COMPAT, 0, 0, _FR_ACT_TO_TBL, 0)
    return body + u32(_FRA_PRIORITY, priority) + u32(_FRA_TABLE, table)


def add_address(address: Address, link: int) -> Request:
    """Give an interface an address, of a network of its own."""
    body = _IFADDR.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, link)
    body += attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    return Request(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {address}")


def add_host(address: Address, link: int, table: int) -> Request:
    """What is for an address leaves by an interface."""
    body = _RTMSG.pack(
        _FAMILY[address.version],
        address.max_prefixlen,
        0,
        0,
        _RT_TABLE_COMPAT,
        _RTPROT_STATIC,
        _RT_SCOPE_LINK if address.version == 4 else 0,
        _RTN_UNICAST,
        0,
    )
    body += attribute(_RTA_DST, address.packed) + u32(_RTA_OIF, link) + u32(_RTA_TABLE, table)
    return Request(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"route {address} to link {link}")


def add_neighbour(address: Address, link: int, mac: bytes) -> Request:
    """Who has an address on a link is known for good."""
    body = _NDMSG.pack(_FAMILY[address.version], link, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, mac)
    return Request(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add neighbour {address}")


def add_proxy(address: Address, link: int) -> Request:
    """Answer on a link for an address that lies behind another."""
    body = _NDMSG.pack(_FAMILY[address.version], link, 0, _NTF_PROXY, 0) + attribute(_NDA_DST, address.packed)
    return Request(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"answer for {address}")


def links(replies: Iterable[Reply]) -> list[Link]:
    """The interfaces among the kernel's answers."""
    return [_link(body) for body in _of_type(replies, _RTM_NEWLINK)]


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    items = attributes(body[_IFINFO.size :])
    name = items.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, _number(items.get(_IFLA_MTU, b"")), items.get(_IFLA_ADDRESS, b""), flags)


def addresses(replies: Iterable[Reply], networks: Collection[tuple[int, Range]]) -> list[Held]:
    """The addresses among the kernel's answers, in its order; ``networks`` are those of :func:`networks`."""
    found = []
    for body in _of_type(replies, _RTM_NEWADDR):
        family, prefix, _, _, index = _IFADDR.unpack_from(body)
        items = attributes(body[_IFADDR.size :])
        packed = items.get(_IFA_LOCAL) or items.get(_IFA_ADDRESS)
        if packed is not None and family in _AF:
            address = ip_interface((packed, prefix))
            found.append(Held(index, address, (index, address.network) in networks))
    return found


def networks(replies: Iterable[Reply]) -> set[tuple[int, Range]]:
    """The networks that addresses have made routes to, each with its interface, among the kernel's answers."""
    found: set[tuple[int, Range]] = set()
    for body in _of_type(replies, _RTM_NEWROUTE):
        family, prefix, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(body)
        items = attributes(body[_RTMSG.size :])
        made = kind == _RTN_UNICAST and protocol == _RTPROT_KERNEL and not flags & _RTM_F_CLONED
        if family in _AF and made and _table(items, table) == _RT_TABLE_MAIN and _RTA_DST in items:
            found.add((_number(items.get(_RTA_OIF, b"")), ip_network((items[_RTA_DST], prefix))))
    return found


def routes(replies: Iterable[Reply]) -> list[Way]:
    """The routes among the kernel's answers, without those that addresses and router advertisements make."""
    found = []
    for body in _of_type(replies, _RTM_NEWROUTE):
        family, prefix, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
        items = attributes(body[_RTMSG.size :])
        if _table(items, table) != _RT_TABLE_MAIN:
            continue
        if (
            family not in _AF
            or kind != _RTN_UNICAST
            or flags & _RTM_F_CLONED
            or protocol in (_RTPROT_KERNEL, _RTPROT_RA)
        ):
            continue
        nowhere = bytes(4 if _AF[family] == 4 else 16)
        metrics = attributes(items.get(_RTA_METRICS, b""))
        found.append(
            Way(
                link=_number(items.get(_RTA_OIF, b"")),
                destination=ip_network((items.get(_RTA_DST, nowhere), prefix)),
                gateway=_address(items.get(_RTA_GATEWAY)),
                scope=scope,
                source=_address(items.get(_RTA_PREFSRC)),
                priority=_number(items.get(_RTA_PRIORITY, b"")),
                onlink=bool(flags & _RTNH_F_ONLINK),
                mtu=_number(metrics.get(_RTAX_MTU, b"")),
                strange=_strange(items),
            )
        )
    return found


def _table(items: dict[int, bytes], short: int) -> int:
    return _number(items[_RTA_TABLE]) if _RTA_TABLE in items else short


def _strange(items: dict[int, bytes]) -> str:
    several = (
        (_RTA_MULTIPATH, "several gateways"),
        (_RTA_NH_ID, "a next hop object"),
        (_RTA_VIA, "a gateway of another family"),
    )
    return next((words for kind, words in several if kind in items), "")


def neighbours(replies: Iterable[Reply]) -> list[Known]:
    """The permanent neighbours among the kernel's answers."""
    found = []
    for body in _of_type(replies, _RTM_NEWNEIGH):
        family, index, state, flags, _ = _NDMSG.unpack_from(body)
        items = attributes(body[_NDMSG.size :])
        address, mac = _address(items.get(_NDA_DST)), items.get(_NDA_LLADDR, b"")
        if family in _AF and state & _NUD_PERMANENT and not flags & _NTF_PROXY and address is not None and any(mac):
            found.append(Known(index, address, mac))
    return found


def _of_type(replies: Iterable[Reply], kind: int) -> Iterator[bytes]:
    return (reply.body for reply in replies if reply.type == kind)


def _address(packed: bytes | None) -> Address | None:
    return None if packed is None else ip_address(packed)


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)
