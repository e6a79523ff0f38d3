"""The messages that shape traffic: token bucket filters, and redirection to another interface.

Layout: linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
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

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC, _RTM_NEWTFILTER = 36, 37, 38, 44
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64 = 1, 4
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_HANDLE: Final = 0x00010000
_CLASS: Final = 0x00010001
_EGRESS_REDIR, _ACT_OK, _ACT_STOLEN = 1, 0, 4
_PRIORITY_AND_ALL_PROTOCOLS: Final = 1 << 16 | 0x0300
_U32_TERMINAL: Final = 1
_TCMSG: Final = struct.Struct("=B3xiIII")
# A rate specification: nothing but the rate matters; then limit, buffer and MTU.
_RATE: Final = struct.Struct("=BBHhHI")
_LIMITS: Final = struct.Struct("=III")
_LATENCY_SECONDS: Final = 0.025
_MICROSECONDS: Final = 1_000_000
_U32_SPACE: Final = 1 << 32
_PSCHED: Final = "/proc/net/psched"


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket filter: ``rate`` in bytes a second, ``limit`` in bytes, ``buffer`` in the scheduler's ticks."""

    rate: int
    limit: int
    buffer: int


def plan_bucket(rate_bits: int, burst_bits: int, ticks: float) -> Bucket | None:
    """The filter that the program ``bandwidth`` makes of bits a second and bits; ``ticks`` are those of a microsecond.

    Numbers that have no room in 32 bits wrap around, as they do in the program on x86; ``None`` where other processors
    do something else.
    """
    rate, burst = rate_bits // 8, burst_bits // 8
    if not rate or not burst:
        return None
    micros = int(float(burst) * _MICROSECONDS / float(rate))
    buffer = int(float(micros % _U32_SPACE) * ticks)
    if max(micros, buffer) >= _U32_SPACE and platform.machine() != "x86_64":
        return None
    limit = int(float(rate) * (_MICROSECONDS * _LATENCY_SECONDS) / _MICROSECONDS) + burst
    return Bucket(rate, limit % _U32_SPACE, buffer % _U32_SPACE)


def ticks_a_microsecond() -> float:
    """The resolution in which the scheduler counts time. Raises OSError, ValueError."""
    values = [int(part, 16) for part in Path(_PSCHED).read_text().split()]
    micros, ticks, resolution = values[0], values[1], values[2]
    if resolution == 1_000_000_000:
        micros = ticks
    return micros / ticks * (resolution / _MICROSECONDS)


def add_bucket(index: int, bucket: Bucket) -> Request:
    """Let an interface send no faster than a bucket allows."""
    rate = _RATE.pack(0, 0, 0, 0, 0, bucket.rate % _U32_SPACE)
    options = attribute(_TBF_PARMS, rate + bytes(_RATE.size) + _LIMITS.pack(bucket.limit, bucket.buffer, 0))
    if bucket.rate >= _U32_SPACE:
        options += attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate))
    body = _TCMSG.pack(0, index, _HANDLE, _ROOT, 0) + text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
    return Request(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, f"limit what link {index} sends")


def add_ingress(index: int) -> Request:
    """Let what an interface receives pass filters."""
    body = _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0) + text(_TCA_KIND, "ingress")
    return Request(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, f"filter what link {index} receives")


def delete_bucket(index: int) -> Request:
    """Undo :func:`add_bucket`."""
    return Request(_RTM_DELQDISC, 0, _TCMSG.pack(0, index, _HANDLE, _ROOT, 0), f"no limit for link {index}")


def delete_ingress(index: int) -> Request:
    """Undo :func:`add_ingress` and :func:`redirect`."""
    return Request(_RTM_DELQDISC, 0, _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0), f"no filter of link {index}")


def redirect(index: int, to: int) -> Request:
    """Send what an interface receives out by another one."""
    # One key that everything matches.
    selector = struct.pack("=BBBBHHhhI", _U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0) + bytes(16)
    actions = [
        nested(place, text(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, _mirred(verdict, to))))
        for place, verdict in enumerate((_ACT_STOLEN, _ACT_OK), 1)
    ]
    options = attribute(_U32_SEL, selector) + u32(_U32_CLASSID, _CLASS) + nested(_U32_ACT, *actions)
    body = _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, _PRIORITY_AND_ALL_PROTOCOLS)
    body += text(_TCA_KIND, "u32") + nested(_TCA_OPTIONS, options)
    return Request(_RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body, f"redirect what link {index} receives")


def _mirred(verdict: int, to: int) -> bytes:
    return struct.pack("=IIiiiiI", 0, 0, verdict, 0, 0, _EGRESS_REDIR, to)


def list_qdiscs(index: int) -> Request:
    """Ask for the schedulers of all interfaces; old kernels ignore the index."""
    return Request(_RTM_GETQDISC, NLM_F_DUMP, _TCMSG.pack(0, index, 0, 0, 0), "list qdiscs")


def has_ingress(replies: Iterable[Reply], index: int) -> bool:
    """Whether what an interface receives passes filters, by the kernel's answers."""
    return any(
        reply.type == _RTM_NEWQDISC
        and _TCMSG.unpack_from(reply.body)[1] == index
        and attributes(reply.body[_TCMSG.size :]).get(_TCA_KIND, b"").rstrip(b"\0") == b"ingress"
        for reply in replies
    )


def buckets(replies: Iterable[Reply], index: int) -> list[Bucket]:
    """The token bucket filters of one interface among the kernel's answers."""
    found: list[Bucket] = []
    for reply in replies:
        if reply.type != _RTM_NEWQDISC or _TCMSG.unpack_from(reply.body)[1] != index:
            continue
        items = attributes(reply.body[_TCMSG.size :])
        if items.get(_TCA_KIND, b"").rstrip(b"\0") != b"tbf":
            continue
        options = attributes(items.get(_TCA_OPTIONS, b""))
        parameters = options.get(_TBF_PARMS, bytes(2 * _RATE.size + _LIMITS.size))
        limit, buffer, _ = _LIMITS.unpack_from(parameters, 2 * _RATE.size)
        rate = _RATE.unpack_from(parameters)[5]
        if _TBF_RATE64 in options:
            rate = struct.unpack("=Q", options[_TBF_RATE64])[0]
        found.append(Bucket(rate, limit, buffer))
    return found
