"""Forgetting flows that the kernel tracks, where what was decided when they began does not count any more.

Layout of the messages: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection
from typing import Final

from forgeone_shim.kernel.netlink import (
    MAX_REQUESTS,
    NLM_F_DUMP,
    Netlink,
    NetlinkError,
    Request,
    attribute,
    attributes,
    nested,
)

_SUBSYS: Final = 1 << 8
_NEW, _GET, _DELETE = 0, 1, 2
_CTA_TUPLE_ORIG, _CTA_ZONE, _CTA_FILTER = 1, 18, 25
_CTA_FILTER_ORIG_FLAGS: Final = 1
_FILTER_PROTO_NUM, _FILTER_PROTO_DST_PORT = 1 << 3, 1 << 5
_CTA_TUPLE_PROTO: Final = 2
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_IPPROTO_UDP: Final = 17
# AF_INET and AF_INET6: the filter is refused without a family.
_FAMILIES: Final = (2, 10)
_GENMSG: Final = struct.Struct("=BBH")
_UNTRACKED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


def forget_all(netlink: Netlink) -> None:
    """Forget every flow in the namespace of a netfilter socket: whoever sends next begins. Raises OSError."""
    try:
        netlink.ask(Request(_SUBSYS | _DELETE, 0, _GENMSG.pack(0, 0, 0), "forget all flows"))
    except NetlinkError as error:
        if error.errno not in _UNTRACKED:
            raise


def forget_udp(netlink: Netlink, host_ports: Collection[int]) -> None:
    """Forget every UDP flow that was first sent to one of ``host_ports``; ``netlink`` is a netfilter socket.

    A datagram of a known flow skips the nat chains: a client that kept sending would go on reaching whatever had the
    port before. A kernel without flow tracking has nothing to forget. Raises OSError.
    """
    for family in _FAMILIES:
        try:
            replies = netlink.ask(_list_flows(family, host_ports))
        except NetlinkError as error:
            if error.errno in _UNTRACKED:
                continue
            raise
        found = [_delete_flow(reply.body, host_ports) for reply in replies if reply.type == _SUBSYS | _NEW]
        doomed = [request for request in found if request is not None]
        for start in range(0, len(doomed), MAX_REQUESTS):
            for refusal in netlink.try_all(doomed[start : start + MAX_REQUESTS])[1]:
                if refusal.errno != errno.ENOENT:
                    raise refusal


def _list_flows(family: int, host_ports: Collection[int]) -> Request:
    # The kernel walks all flows for each list, so several ports are looked for in one list of all UDP flows.
    port = next(iter(host_ports)) if len(host_ports) == 1 else 0
    flags = _FILTER_PROTO_NUM | (_FILTER_PROTO_DST_PORT if port else 0)
    body = _GENMSG.pack(family, 0, 0)
    body += nested(_CTA_FILTER, attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
    body += nested(
        _CTA_TUPLE_ORIG,
        nested(
            _CTA_TUPLE_PROTO,
            attribute(_CTA_PROTO_NUM, bytes([_IPPROTO_UDP])),
            attribute(_CTA_PROTO_DST_PORT, port.to_bytes(2, "big")),
        ),
    )
    return Request(_SUBSYS | _GET, NLM_F_DUMP, body, "list UDP flows")


def _delete_flow(body: bytes, host_ports: Collection[int]) -> Request | None:
    """The request to forget the flow that ``body`` describes, if it is one that went to one of ``host_ports``."""
    items = attributes(body[_GENMSG.size :])
    original = items.get(_CTA_TUPLE_ORIG, b"")
    if not _goes_to(original, host_ports):
        return None
    request = _GENMSG.pack(body[0], 0, 0) + nested(_CTA_TUPLE_ORIG, original)
    if _CTA_ZONE in items:
        request += attribute(_CTA_ZONE, items[_CTA_ZONE])
    return Request(_SUBSYS | _DELETE, 0, request, "forget a UDP flow")


def _goes_to(tuple_: bytes, host_ports: Collection[int]) -> bool:
    """Kernels before 5.8 do not filter what they list."""
    protocol = attributes(attributes(tuple_).get(_CTA_TUPLE_PROTO, b""))
    number, port = protocol.get(_CTA_PROTO_NUM, b""), protocol.get(_CTA_PROTO_DST_PORT, b"")
    return number == bytes([_IPPROTO_UDP]) and int.from_bytes(port, "big") in host_ports
