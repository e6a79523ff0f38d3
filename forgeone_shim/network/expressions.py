"""What rules of nftables are made of, in the kernel's bytes. Pure. Layout: linux/netfilter/nf_tables.h.

Each function gives one or more expressions, which a rule evaluates in order until one does not hold. Numbers that are
compared are given as they are in a register: packets' in network byte order, the kernel's own in the host's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from forgeone_shim.kernel.netlink import attribute, nested, text

_LIST_ELEM: Final = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE: Final = 1

_REGISTER: Final = 1
_VERDICT_REGISTER: Final = 0

_META_DREG, _META_KEY = 1, 2
_CMP_SREG, _CMP_OP, _CMP_DATA = 1, 2, 3
_PAYLOAD_DREG, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LEN = 1, 2, 3, 4
_BITWISE_SREG, _BITWISE_DREG, _BITWISE_LEN, _BITWISE_MASK, _BITWISE_XOR = 1, 2, 3, 4, 5
_LOOKUP_SET, _LOOKUP_SREG = 1, 2
_IMMEDIATE_DREG, _IMMEDIATE_DATA = 1, 2
_CT_DREG, _CT_KEY = 1, 2
_OBJREF_TYPE, _OBJREF_NAME = 1, 2
_REJECT_TYPE, _REJECT_CODE = 1, 2
_FIB_DREG, _FIB_RESULT, _FIB_FLAGS = 1, 2, 3

_META_IIFNAME, _META_OIFNAME, _INTERFACE_NAME = 6, 7, 16
_META_IIFTYPE, _META_OIFTYPE, _META_NFPROTO, _META_L4PROTO, _META_PKTTYPE = 8, 9, 15, 16, 19
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5
_NETWORK, _TRANSPORT = 1, 2
_CT_STATE, _CT_DIRECTION, _CT_STATUS = 0, 1, 2
_ESTABLISHED, _RELATED, _NEW = 1 << 1, 1 << 2, 1 << 3
_DNAT: Final = 1 << 5
_REPLY: Final = 1
_TCP_RESET, _ICMPX_UNREACHABLE = 1, 2
_ADMIN_PROHIBITED: Final = 3
_OBJECT_COUNTER: Final = 1
_FIB_TYPE: Final = 3
_FIB_SOURCE: Final = 1
_LOCAL: Final = 2

_ARPHRD_LOOPBACK: Final = 772
_PACKET_HOST: Final = 0
_NFPROTO: Final = {4: 2, 6: 10}
# Where the source and the destination address of a header begin, and how long they are.
_ADDRESS: Final = {4: (12, 16, 4), 6: (8, 24, 16)}
_DESTINATION_PORT: Final = 2
_TCP: Final = 6
_TCP_FLAGS: Final = 13
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16

DROP, ACCEPT = 0, 1


def came_by_loopback() -> bytes:
    """The packet came in by the loopback interface."""
    return _meta(_META_IIFTYPE, struct.pack("=H", _ARPHRD_LOOPBACK))


def leaves_by_loopback() -> bytes:
    """The packet leaves by the loopback interface."""
    return _meta(_META_OIFTYPE, struct.pack("=H", _ARPHRD_LOOPBACK))


def came_by(interface: str, *, other: bool = False) -> bytes:
    """The packet came in by that interface, or by any ``other``."""
    return _load("meta", _META_DREG, _META_KEY, _META_IIFNAME) + _compare(_NEQ if other else _EQ, _name(interface))


def leaves_by(interface: str, *, other: bool = False) -> bytes:
    """The packet leaves by that interface, or by any ``other``."""
    return _load("meta", _META_DREG, _META_KEY, _META_OIFNAME) + _compare(_NEQ if other else _EQ, _name(interface))


def _name(interface: str) -> bytes:
    return interface.encode().ljust(_INTERFACE_NAME, b"\0")


def is_answer() -> bytes:
    """The packet goes the other way than the one that began what it belongs to, or resets that."""
    back = _load("ct", _CT_DREG, _CT_KEY, _CT_DIRECTION) + _compare(_EQ, bytes([_REPLY]))
    return back + _bits(_CT_STATE, _ESTABLISHED | _RELATED)


def is_about_known() -> bytes:
    """The packet (an ICMP error) is about something that was let through."""
    return _bits(_CT_STATE, _RELATED)


def begins() -> bytes:
    """Nothing is known that the packet belongs to."""
    return _bits(_CT_STATE, _NEW)


def begins_in_the_middle() -> bytes:
    """The packet belongs to a TCP connection that nobody here saw begin: who began it is not known."""
    flags = _payload(_TRANSPORT, _TCP_FLAGS, 1) + _bits_of(bytes([_FIN | _SYN | _RST | _ACK]))
    return protocol(_TCP) + begins() + flags + _compare(_NEQ, bytes([_SYN]))


def is_under_anothers_address() -> bytes:
    """The packet, which leaves, has an IPv6 source that is not one of this namespace.

    Of IPv4 the kernel itself allows that only to those who have ``NET_RAW``; of IPv6 to everybody (``IPV6_FREEBIND``).
    """
    type_ = _expression(
        "fib", _number(_FIB_DREG, _REGISTER), _number(_FIB_RESULT, _FIB_TYPE), _number(_FIB_FLAGS, _FIB_SOURCE)
    )
    return version(6) + type_ + _compare(_NEQ, struct.pack("=I", _LOCAL))


def is_not_from(number: int, addresses: Iterable[bytes]) -> bytes:
    """The packet is of that version of IP and comes from none of these addresses."""
    return version(number) + b"".join(_address(number, source=True) + _compare(_NEQ, one) for one in addresses)


def is_redirected() -> bytes:
    """The packet was sent to somebody else."""
    return _bits(_CT_STATUS, _DNAT)


def version(number: int) -> bytes:
    """The packet is of that version of IP."""
    return _meta(_META_NFPROTO, bytes([_NFPROTO[number]]))


def protocol(number: int) -> bytes:
    """The packet carries that protocol."""
    return _meta(_META_L4PROTO, bytes([number]))


def is_for_many() -> bytes:
    """The packet came by multicast or broadcast."""
    return _load("meta", _META_DREG, _META_KEY, _META_PKTTYPE) + _compare(_NEQ, bytes([_PACKET_HOST]))


def address_in(range_: IPv4Network | IPv6Network, *, source: bool) -> bytes:
    """The address is in the range. The packet must be of its version."""
    masked = _address(range_.version, source=source)
    if range_.prefixlen < range_.max_prefixlen:
        masked += _bits_of(range_.netmask.packed)
    return masked + _compare(_EQ, range_.network_address.packed)


def address_among(group: str, number: int, *, source: bool) -> bytes:
    """The address is in the named set, of the IP version that the packet must have."""
    lookup = _expression("lookup", text(_LOOKUP_SET, group), _number(_LOOKUP_SREG, _REGISTER))
    return _address(number, source=source) + lookup


def port_in(first: int, last: int) -> bytes:
    """The port of whoever is talked to is in the range. The packet must carry a protocol that has ports."""
    loaded = _payload(_TRANSPORT, _DESTINATION_PORT, 2)
    if first == last:
        return loaded + _compare(_EQ, first.to_bytes(2, "big"))
    return loaded + _compare(_GTE, first.to_bytes(2, "big")) + _compare(_LTE, last.to_bytes(2, "big"))


def icmp_type(number: int) -> bytes:
    """The packet, which must carry ICMP, has that type."""
    return _payload(_TRANSPORT, 0, 1) + _compare(_EQ, bytes([number]))


def counted(counter: str) -> bytes:
    """Count the packet."""
    return _expression("objref", _number(_OBJREF_TYPE, _OBJECT_COUNTER), text(_OBJREF_NAME, counter))


def verdict(code: int) -> bytes:
    """What becomes of the packet: :data:`ACCEPT` or :data:`DROP`."""
    decided = nested(_DATA_VERDICT, _number(_VERDICT_CODE, code))
    return _expression("immediate", _number(_IMMEDIATE_DREG, _VERDICT_REGISTER), nested(_IMMEDIATE_DATA, decided))


def reset() -> bytes:
    """Drop the packet, which must carry TCP, and end its connection for its sender."""
    return _expression("reject", _number(_REJECT_TYPE, _TCP_RESET))


def reject() -> bytes:
    """Drop the packet, and tell its sender that it is forbidden."""
    return _expression(
        "reject", _number(_REJECT_TYPE, _ICMPX_UNREACHABLE), attribute(_REJECT_CODE, bytes([_ADMIN_PROHIBITED]))
    )


def _address(number: int, *, source: bool) -> bytes:
    from_, to, width = _ADDRESS[number]
    return _payload(_NETWORK, from_ if source else to, width)


def _bits(key: int, bits: int) -> bytes:
    return _load("ct", _CT_DREG, _CT_KEY, key) + _bits_of(struct.pack("=I", bits)) + _compare(_NEQ, bytes(4))


def _bits_of(mask: bytes) -> bytes:
    """Of what is in the register, those bits."""
    return _expression(
        "bitwise",
        _number(_BITWISE_SREG, _REGISTER),
        _number(_BITWISE_DREG, _REGISTER),
        _number(_BITWISE_LEN, len(mask)),
        _data(_BITWISE_MASK, mask),
        _data(_BITWISE_XOR, bytes(len(mask))),
    )


def _meta(key: int, value: bytes) -> bytes:
    return _load("meta", _META_DREG, _META_KEY, key) + _compare(_EQ, value)


def _load(kind: str, into: int, which: int, key: int) -> bytes:
    return _expression(kind, _number(into, _REGISTER), _number(which, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        _number(_PAYLOAD_DREG, _REGISTER),
        _number(_PAYLOAD_BASE, base),
        _number(_PAYLOAD_OFFSET, offset),
        _number(_PAYLOAD_LEN, length),
    )


def _compare(how: int, value: bytes) -> bytes:
    return _expression("cmp", _number(_CMP_SREG, _REGISTER), _number(_CMP_OP, how), _data(_CMP_DATA, value))


def _expression(name: str, *items: bytes) -> bytes:
    return nested(_LIST_ELEM, text(_EXPR_NAME, name), nested(_EXPR_DATA, *items))


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))
