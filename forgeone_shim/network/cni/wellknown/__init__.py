"""Plugins of the CNI project done in this process, with the results of its programs down to the last file and rule.

What is done here and what by the program is decided by configuration alone, and either can undo what the other did:
they share the IPAM's files, the names of interfaces and chains, and all state is in the kernel. The model is
https://github.com/containernetworking/plugins, version 1.1.1, as Debian has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forgeone_shim.network.cni.plugin import Plugin
from forgeone_shim.network.cni.wellknown import bandwidth, bridge, firewall, hostlocal, loopback, portmap, ptp
from forgeone_shim.network.cni.wellknown.conf import Unsupported
from forgeone_shim.network.cni.wellknown.inprocess import InProcess


def find(type: str, config: Mapping[str, Any]) -> Plugin | None:
    """The plugin of a type if it does all that ``config`` says, exactly as its program does; else ``None``.

    ``config`` is the one of the invocation to come: ``runtimeConfig`` counts, ``prevResult`` does not. What the program
    would refuse is left to it, with its words.
    """
    plugin: InProcess[Any]
    match type:
        case "loopback":
            plugin = InProcess(loopback.read, loopback.run)
        case "bridge":
            plugin = InProcess(bridge.read, bridge.run)
        case "ptp":
            plugin = InProcess(ptp.read, ptp.run)
        case "host-local":
            plugin = InProcess(hostlocal.read, hostlocal.run)
        case "portmap":
            plugin = InProcess(portmap.read, portmap.run)
        case "firewall":
            plugin = InProcess(firewall.read, firewall.run)
        case "bandwidth":
            plugin = InProcess(bandwidth.read, bandwidth.run)
        case _:
            return None
    try:
        plugin.read(config)
    except Unsupported:
        return None
    return plugin
