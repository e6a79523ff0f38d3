"""Veth pairs of the host and a container, as all plugins make them."""

from __future__ import annotations

import errno
import secrets
from contextlib import suppress
from typing import Final

from forgeone_shim.kernel.namespaces import write_proc
from forgeone_shim.kernel.netlink import Netlink, NetlinkError
from forgeone_shim.network import host
from forgeone_shim.network.cni.plugin import CniError
from forgeone_shim.network.cni.wellknown import rtnl
from forgeone_shim.network.cni.wellknown.result import INTERNAL
from forgeone_shim.network.links import delete_link

_NAME_TRIES: Final = 10


def make(netlink: Netlink, netns: int, ifname: str, *, mtu: int, mac: str = "", master: int = 0) -> str:
    """Make a pair, one end of it as ``ifname`` in the namespace of a descriptor; the other's name. Both are down.

    :raises CniError: the namespace has an interface of that name.
    :raises OSError: the kernel refused.
    """
    for _ in range(_NAME_TRIES):
        name = f"veth{secrets.token_hex(4)}"
        try:
            netlink.ask(rtnl.add_veth(name, mtu, netns, inside=ifname, mac=mac, master=master))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            if not netlink.try_all([rtnl.link(name)])[1]:
                continue
            raise CniError(INTERNAL, f"container veth name provided ({ifname}) already exists") from error
        return name
    raise CniError(INTERNAL, "failed to find a unique veth name")


def refuse_router_advertisements(name: str) -> None:
    """Nobody else says what routes go by an interface; a kernel without IPv6 has nothing to refuse."""
    with suppress(OSError):
        write_proc(f"{host.IPV6_CONF}/{name}/accept_ra", "0")


def delete(name: str) -> None:
    """Delete an interface of the host; a missing one is no error. Raises OSError."""
    with Netlink() as netlink:
        try:
            netlink.ask(delete_link(name))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
