"""The nftables table of a pod network: its text, loaded once, and its map entries, written by netlink for each pod.

Rules never name a pod: masquerading goes by range, host ports by map lookup. The table's kind is ``inet``. Layout of
the messages: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import struct
import subprocess
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from forgeone_shim.errors import FailedPrecondition, InternalError
from forgeone_shim.kernel.netlink import (
    NLM_F_CREATE,
    Netlink,
    NetlinkError,
    Pool,
    Request,
    attribute,
    nested,
    text,
)
from forgeone_shim.network.hostports import Element
from forgeone_shim.network.plan import Layout

# Set on a packet by which a pod calls one of its host's addresses; the same bit CNI's portmap uses for it.
HAIRPIN_MARK: Final = 0x2000
_LAST_CHAIN: Final = "postrouting"
_NFT_TIMEOUT: Final = 30.0
_GROUP: Final = 256

SUBSYSTEM: Final = 10 << 8
_NFPROTO_INET: Final = 1
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 16, 17, 1
_GETCHAIN, _DELTABLE, _NEWSETELEM, _DELSETELEM = 4, 2, 12, 14
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _ELEM_KEY, _ELEM_DATA, _DATA_VALUE = 1, 1, 2, 1
_GENMSG: Final = struct.Struct("=BBH")


def render_table(layout: Layout) -> str:
    """The text that makes the table what it should be, as one transaction; what pods have in its maps stays."""
    v4, bridge, mark = str(layout.ipv4), f'"{layout.bridge}"', f"{HAIRPIN_MARK:#x}"
    families = (
        [("4", "ip", "ipv4_addr")] if layout.ipv6 is None else [("4", "ip", "ipv4_addr"), ("6", "ip6", "ipv6_addr")]
    )
    port, transports = "inet_service", "meta l4proto { tcp, udp, sctp }"
    declare: list[str] = []
    rules = [
        # route_localnet on the bridge, needed for 127.0.0.1 as a host port's address, must not let pods in by it.
        f"guard iifname {bridge} ip daddr 127.0.0.0/8 drop",
        f"guard iifname {bridge} ip saddr 127.0.0.0/8 drop",
        # Only the host itself may use a host port on its loopback.
        "prerouting ip daddr 127.0.0.0/8 return",
        f"prerouting {transports} fib daddr type local jump hostports",
        f"output meta nfproto ipv4 {transports} fib daddr type local jump hostports",
        f"output meta nfproto ipv6 {transports} ip6 daddr != ::1 fib daddr type local jump hostports",
        # From loopback only the way to a pod can have been redirected; no other packet with such a source leaves.
        f"postrouting ip saddr 127.0.0.0/8 oifname {bridge} masquerade",
    ]
    for suffix, ip, kind in families:
        declare += [
            f"map inet T any{suffix} {{ type inet_proto . {port} : {kind} . {port}; }}",
            f"map inet T at{suffix} {{ type inet_proto . {kind} . {port} : {kind} . {port}; }}",
        ]
        network = v4 if suffix == "4" else str(layout.ipv6)
        multicast = "224.0.0.0/4" if suffix == "4" else "ff00::/8"
        rules += [
            f"hostports {ip} saddr {network} meta mark set meta mark or {mark}",
            f"hostports dnat {ip} to meta l4proto . {ip} daddr . th dport map @at{suffix}",
            f"hostports dnat {ip} to meta l4proto . th dport map @any{suffix}",
            # A pod that reached a pod (itself, too) by a host port must get its answers through the host again.
            f"postrouting meta mark and {mark} == {mark} ct status dnat "
            f"{ip} saddr {network} {ip} daddr {network} masquerade",
        ]
        if layout.masquerade:
            rules.append(
                f"postrouting {ip} saddr {network} oifname != {bridge} "
                f"{ip} daddr != {{ {network}, {multicast} }} masquerade"
            )
    declare += [
        "chain inet T hostports",
        "chain inet T guard { type filter hook prerouting priority -300; }",
        "chain inet T prerouting { type nat hook prerouting priority -100; }",
        "chain inet T output { type nat hook output priority -100; }",
        f"chain inet T {_LAST_CHAIN} {{ type nat hook postrouting priority 100; }}",
    ]
    lines = ["add table inet T", *(f"add {item}" for item in declare), "flush table inet T"]
    lines += [f"add rule inet T {rule}" for rule in rules]
    return "".join(line.replace("inet T", f"inet {layout.table}", 1) + "\n" for line in lines)


def load_table(layout: Layout) -> None:
    """Make the table, or make it right again.

    :raises FailedPrecondition: this host has no ``nft``.
    :raises InternalError: the kernel does not take the table.
    """
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=render_table(layout).encode(),
            capture_output=True,
            close_fds=False,
            check=False,
            timeout=_NFT_TIMEOUT,
        )
    except FileNotFoundError:
        raise FailedPrecondition("the pod network needs the program nft", fix="apt-get install nftables") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InternalError(f"nft: {error}") from error
    if done.returncode:
        raise InternalError(f"nft refused table {layout.table}: {done.stderr.decode(errors='replace').strip()}")


class Table:
    """The table as the kernel has it, reached through the sockets of ``pool`` (netfilter)."""

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self._pool = pool

    def is_there(self) -> bool:
        """Whether the table still has its last chain: someone may have flushed all rules of the host."""
        body = genmsg() + text(_CHAIN_TABLE, self.name) + text(_CHAIN_NAME, _LAST_CHAIN)
        with self._pool.borrow() as netlink:
            errors = netlink.try_all([Request(SUBSYSTEM | _GETCHAIN, 0, body, f"find table {self.name}")])[1]
        if errors and errors[0].errno != errno.ENOENT:
            raise errors[0]
        return not errors

    def delete(self) -> None:
        """Delete the table with all in it; a missing one is no error."""
        body = genmsg() + text(_TABLE_NAME, self.name)
        errors = self._transact([Request(SUBSYSTEM | _DELTABLE, 0, body, f"delete table {self.name}")])
        if errors and errors[0].errno != errno.ENOENT:
            raise errors[0]

    def add(self, items: Sequence[Element]) -> None:
        """Add map entries, all or none. An entry whose key leads elsewhere is replaced: nobody owns it any more.

        :raises NetlinkError: ENOENT when the table is gone.
        """
        requests = [_elements_request(_NEWSETELEM, self.name, group) for group in _by_map(items)]
        errors = self._transact(requests)
        if errors and errors[0].errno in (errno.EEXIST, errno.EBUSY):
            self.remove(items)
            errors = self._transact(requests)
        if errors:
            raise errors[0]

    def remove(self, items: Sequence[Element]) -> None:
        """Delete map entries by key; missing ones, or a missing table, are no error."""
        errors = self._transact([_elements_request(_DELSETELEM, self.name, group) for group in _by_map(items)])
        if not errors:
            return
        # All or none: one that is missing keeps the others.
        for item in items:
            errors = self._transact([_elements_request(_DELSETELEM, self.name, [item])])
            if errors and errors[0].errno != errno.ENOENT:
                raise errors[0]

    def _transact(self, requests: Sequence[Request]) -> list[NetlinkError]:
        if not requests:
            return []
        with self._pool.borrow() as netlink:
            return transact(netlink, requests)


def transact(netlink: Netlink, requests: Sequence[Request], generation: int | None = None) -> list[NetlinkError]:
    """All of the requests, or none where a refusal is returned; ERESTART unless ``generation`` is the tables' now."""
    # The batch's own messages name the subsystem it is for, in network byte order.
    edge = struct.pack("=BB", 0, 0) + struct.pack(">H", SUBSYSTEM >> 8)
    expected = b"" if generation is None else attribute(_BATCH_GENERATION, struct.pack(">I", generation))
    begin = Request(_BATCH_BEGIN, 0, edge + expected, "begin")
    return netlink.batch(requests, begin, Request(_BATCH_END, 0, edge, "end"))


def _by_map(items: Iterable[Element]) -> list[list[Element]]:
    """In groups that fit a message, whose size field has 16 bits."""
    ordered = sorted(items, key=lambda item: item.map)
    groups = [list(group) for _, group in groupby(ordered, key=lambda item: item.map)]
    return [group[start : start + _GROUP] for group in groups for start in range(0, len(group), _GROUP)]


def _elements_request(kind: int, table: str, items: Sequence[Element]) -> Request:
    name = items[0].map
    listed = [
        nested(
            _LIST_ELEM,
            nested(_ELEM_KEY, attribute(_DATA_VALUE, item.key)),
            *([nested(_ELEM_DATA, attribute(_DATA_VALUE, item.value))] if kind == _NEWSETELEM else []),
        )
        for item in items
    ]
    body = genmsg() + text(_LIST_TABLE, table) + text(_LIST_SET, name) + nested(_LIST_ELEMENTS, *listed)
    flags = NLM_F_CREATE if kind == _NEWSETELEM else 0
    return Request(SUBSYSTEM | kind, flags, body, f"change map {name} of table {table}")


def genmsg() -> bytes:
    """What each message about tables of the kind ``inet`` begins with."""
    return _GENMSG.pack(_NFPROTO_INET, 0, 0)
