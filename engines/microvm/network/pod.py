"""A pod's network namespace and its machine: the tap made, the interface read, packets redirected."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface
from typing import Final, TypeVar

from engines.microvm.network import plan, rtnl
from engines.microvm.network.plan import Seen
from engines.microvm.wire.messages import Interface
from forgeone_shim.errors import FailedPrecondition, syscall_error
from forgeone_shim.kernel import taps, traffic
from forgeone_shim.kernel.namespaces import run_in, write_proc
from forgeone_shim.kernel.netlink import Netlink, NetlinkError, Reply

T = TypeVar("T")

_TUN: Final = "/dev/net/tun"
# Of routes; nobody else's in a pod.
_TABLE: Final = 0x666F


def tap(netns: str) -> int:
    """A new tap in the pod's network namespace, up; its descriptor, the caller's to close.

    It goes when the last copy of the descriptor is closed, and what was redirected to it is then dropped.

    :raises NotFound: there is no such namespace any more.
    :raises FailedPrecondition: the pod has a machine already.
    :raises InternalError: the kernel refused.
    """

    def make() -> int:
        with ExitStack() as undo:
            try:
                fd = taps.make(taps.NAME)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise FailedPrecondition("the pod has a machine already") from error
                raise syscall_error("make a tap by", _TUN, error) from error
            undo.callback(os.close, fd)
            with Netlink() as netlink:
                mine = plan.tap(rtnl.links(netlink.ask(rtnl.ask_links())))
                # Whatever it hears is the guest's, whatever it says would be heard by the guest alone.
                for refusal in netlink.try_all([rtnl.silence(mine.index)])[1]:
                    if refusal.errno != errno.EAFNOSUPPORT:  # this host has no IPv6
                        raise refusal
                netlink.ask(rtnl.start(mine.index, mine.mtu))
            undo.pop_all()
        return fd

    return _inside(netns, make)


def connect(netns: str, *, routed: bool) -> Interface | None:
    """Let the machine be the pod for everybody else; what the guest is told of its interface, ``None``: it has none.

    Where it is ``routed`` every packet passes this host's kernel, and what that holds the pod's packets to; else the
    machine is on the pod's network as if the pod's interface were its own.

    :raises NotFound: there is no such namespace any more.
    :raises FailedPrecondition: the pod is on its network in a way that a machine cannot be.
    :raises InternalError: the kernel refused. A pod that was to be routed has to go then.
    """
    told = pod_interface(netns)
    if told is None:
        return None
    if routed:
        return route(netns, told)
    redirect(netns)
    return told


def pod_interface(netns: str) -> Interface | None:
    """What the guest is told of the pod's interface; ``None`` for a pod without a network.

    :raises NotFound: there is no such namespace any more.
    :raises FailedPrecondition: the pod is on its network in a way that a machine cannot be.
    :raises InternalError: the kernel refused.
    """

    def look() -> Seen:
        with Netlink() as netlink:
            routes = netlink.ask(rtnl.ask_routes())
            return Seen(
                links=rtnl.links(netlink.ask(rtnl.ask_links())),
                addresses=rtnl.addresses(netlink.ask(rtnl.ask_addresses()), rtnl.networks(routes)),
                routes=rtnl.routes(routes),
                neighbours=rtnl.neighbours(netlink.ask(rtnl.ask_neighbours())),
            )

    return plan.interface(_inside(netns, look))


def redirect(netns: str) -> None:
    """From now on what comes for the pod is the machine's, and what the machine sends is the pod's.

    The pod keeps its addresses, so that whoever looks finds them, but this host's kernel never sees a packet for them.
    Nothing to do for a pod without a network. On any error all is as before.

    :raises NotFound: there is no such namespace any more.
    :raises FailedPrecondition: the machine has gone, or somebody else filters what the pod's interface receives.
    :raises InternalError: the kernel refused.
    """

    def connect() -> None:
        with Netlink() as netlink, ExitStack() as undo:
            links = rtnl.links(netlink.ask(rtnl.ask_links()))
            outer = plan.outer(links)
            if outer is None:
                return
            mine = plan.tap(links)
            netlink.ask(rtnl.start(mine.index, outer.mtu))
            for here, there in ((mine, outer), (outer, mine)):
                _filter(netlink, here)
                undo.callback(netlink.try_all, [traffic.delete_ingress(here.index)])
                netlink.ask(traffic.redirect(here.index, there.index))
            undo.pop_all()

    _inside(netns, connect)


def route(netns: str, told: Interface) -> Interface:
    """From now on this host's kernel passes on what comes for the pod and from its machine; returns what that is told.

    The pod keeps its addresses, and the kernel goes on answering for them on the pod's network.
    """
    addresses = [ip_interface(one).ip for one in told.addresses]
    versions: set[int] = {one.version for one in addresses}

    def pass_on() -> bytes:
        with Netlink() as netlink:
            links = rtnl.links(netlink.ask(rtnl.ask_links()))
            outer, mine = plan.outer(links), plan.tap(links)
            if outer is None:
                raise FailedPrecondition("the pod's interface has gone")
            netlink.ask(rtnl.start(mine.index, outer.mtu))
            if 4 in versions:
                netlink.ask(rtnl.add_address(ip_address(plan.ROUTERS[4]), mine.index))
            for version in sorted(versions):
                # Before the addresses are this host's own; and at no moment are they nobody's.
                first = (rtnl.add_rule(version, 1, _TABLE), rtnl.add_rule(version, 2, rtnl.TABLE_LOCAL))
                netlink.ask(*first, rtnl.delete_rule(version, 0, rtnl.TABLE_LOCAL))
            for address in addresses:
                netlink.ask(
                    rtnl.add_host(address, mine.index, _TABLE),
                    rtnl.add_neighbour(address, mine.index, told.mac),
                    rtnl.add_proxy(address, outer.index),
                )
        for path, value in _switches(versions, outer.name):
            write_proc(path, value)
        return mine.mac

    return plan.through_router(told, _inside(netns, pass_on))


def _switches(versions: set[int], outer: str) -> Iterator[tuple[str, str]]:
    if 4 in versions:
        yield "/proc/sys/net/ipv4/ip_forward", "1"
        # Neighbours are answered for at once. What comes from the machine under another's address is dropped.
        yield f"/proc/sys/net/ipv4/neigh/{outer}/proxy_delay", "0"
        yield f"/proc/sys/net/ipv4/conf/{taps.NAME}/rp_filter", "1"
        # Whatever a pod has asked for: rules see the first stop of such a route alone.
        yield f"/proc/sys/net/ipv4/conf/{taps.NAME}/accept_source_route", "0"
    if 6 in versions:
        yield "/proc/sys/net/ipv6/conf/all/forwarding", "1"
        # Neighbours' questions and answers that are for a pod's address alone are not passed on.
        yield "/proc/sys/net/ipv6/conf/all/proxy_ndp", "1"


def _filter(netlink: Netlink, link: rtnl.Link) -> list[Reply]:
    try:
        return netlink.ask(traffic.add_ingress(link.index))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        raise FailedPrecondition(f"what the pod's {link.name} receives is filtered already") from error


def _inside(netns: str, function: Callable[[], T]) -> T:
    try:
        return run_in(netns, function)
    except OSError as error:
        raise syscall_error("set up the network of", netns, error) from error
