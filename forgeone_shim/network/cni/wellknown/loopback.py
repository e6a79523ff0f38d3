"""The plugin ``loopback``: ``lo`` of a container is up.

https://github.com/containernetworking/plugins/tree/main/plugins/main/loopback
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import NotFound
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import Netlink
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import result, rtnl
from forgeone_shim.network.cni.wellknown.conf import Fields, Network, network
from forgeone_shim.network.cni.wellknown.result import INTERNAL, Interface, Ip, Result

_NAME: Final = "lo"
_NO_MAC: Final = "00:00:00:00:00:00"


def read(config: Mapping[str, Any]) -> Network:
    """The configuration of loopback, which has nothing of its own."""
    fields = Fields(config)
    about = network(fields)
    fields.done()
    return about


def run(about: Network, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    deadline.check("before loopback")
    match invocation.command:
        case Command.ADD:
            before = result.previous(invocation.config)
            ips = run_in(invocation.netns, _start)
            if before is not None:
                return result.passed_on(invocation.config)
            return result.render(Result((Interface(_NAME, _NO_MAC, invocation.netns),), ips), about.version)
        case Command.DEL if invocation.netns:
            with suppress(NotFound):
                run_in(invocation.netns, lambda: _set(0, rtnl.IFF_UP))
        case Command.CHECK:
            run_in(invocation.netns, _check)
        case _:
            pass
    return {}


def _start() -> tuple[Ip, ...]:
    index = _set(rtnl.IFF_UP, 0)
    with Netlink() as netlink:
        listed = [rtnl.addresses(netlink.ask(rtnl.list_addresses(version)), index) for version in (4, 6)]
    for address in (item.address for items in listed for item in items):
        if not address.is_loopback:
            raise CniError(INTERNAL, f"loopback interface found with non-loopback address {str(address.ip)!r}")
    return tuple(Ip(items[0].address, interface=0) for items in listed if items)


def _set(on: int, off: int) -> int:
    with Netlink() as netlink:
        index = rtnl.links(netlink.ask(rtnl.link(_NAME)))[0].index
        netlink.ask(rtnl.set_flags(index, on, off))
    return index


def _check() -> None:
    with Netlink() as netlink:
        if not rtnl.links(netlink.ask(rtnl.link(_NAME)))[0].flags & rtnl.IFF_UP:
            raise CniError(INTERNAL, "loopback interface is down")
