"""Holding a pod of the built-in network to its bandwidth, at the host's end of its link.

What the pod receives, the host's end sends: a token bucket filter (tc-tbf(8)) there. What it sends, the host's end
receives, where nothing can wait; it is redirected to an interface of its own (ifb) that has such a filter.
"""

from __future__ import annotations

from typing import Final

from forgeone_shim.kernel import traffic
from forgeone_shim.kernel.netlink import Netlink
from forgeone_shim.kernel.traffic import Bucket
from forgeone_shim.network.bandwidth import Limits
from forgeone_shim.network.cni.wellknown import rtnl

_MICROSECONDS: Final = 1_000_000
_U32_MAX: Final = (1 << 32) - 1
# A burst is this part of a second of the rate: short enough for a limit to be felt, long enough for timers' slack.
_BURST_PARTS: Final = 10
# Packets that the kernel has put together (GSO) pass whole, unless one were minutes' worth of the rate.
_BURST_LEAST, _BURST_LEAST_SECONDS = 1 << 16, 100
# What waits for longer is dropped, so that the sender learns of the limit.
_QUEUE_PARTS: Final = 40


def plan_bucket(bits: int, ticks: float) -> Bucket:
    """The filter for bits a second; ``ticks`` are those of the kernel's scheduler in a microsecond."""
    rate = bits // 8
    burst = max(rate // _BURST_PARTS, min(_BURST_LEAST, rate * _BURST_LEAST_SECONDS))
    burst = min(burst, _U32_MAX // 2)
    buffer = int(burst * _MICROSECONDS / rate * ticks)
    return Bucket(rate, min(rate // _QUEUE_PARTS + burst, _U32_MAX), min(max(buffer, 1), _U32_MAX))


def shape(netlink: Netlink, link: str, ifb: str, limits: Limits) -> None:
    """Limit what passes the host's end ``link``; ``ifb`` is the name of the interface for what the pod sends.

    What is made goes when the two interfaces go, also where this fails. Raises OSError.
    """
    ticks = traffic.ticks_a_microsecond()
    end = rtnl.links(netlink.ask(rtnl.link(link)))[0]
    if limits.ingress is not None:
        netlink.ask(traffic.add_bucket(end.index, plan_bucket(limits.ingress, ticks)))
    if limits.egress is not None:
        netlink.ask(rtnl.add_ifb(ifb, end.mtu))
        other = rtnl.links(netlink.ask(rtnl.link(ifb)))[0].index
        netlink.ask(
            traffic.add_bucket(other, plan_bucket(limits.egress, ticks)),
            traffic.add_ingress(end.index),
            traffic.redirect(end.index, other),
        )
