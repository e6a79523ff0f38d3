"""The plugin ``firewall`` with its iptables backend: what goes to and comes from a container may be forwarded.

https://www.cni.dev/plugins/current/meta/firewall/
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import result, rules
from forgeone_shim.network.cni.wellknown.conf import CHAIN_NAME_MAX, Fields, Network, Unsupported, network
from forgeone_shim.network.cni.wellknown.iptables import both_known, iptables
from forgeone_shim.network.cni.wellknown.result import INTERNAL, IpInterface
from forgeone_shim.network.cni.wellknown.rules import Chain, Entry, Step

_TABLE: Final = "filter"
_CHAIN, _ADMIN = "CNI-FORWARD", "CNI-ADMIN"
_BUS: Final = ("/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Firewall:
    """What is configured of firewall; ``admin`` is the chain in which an administrator overrules it."""

    network: Network
    admin: str


def read(config: Mapping[str, Any]) -> Firewall:
    """The configuration of firewall.

    :raises Unsupported: for what is left to the program; firewalld is.
    """
    fields = Fields(config)
    about = network(fields)
    if about.version.startswith("0.3."):
        raise Unsupported("cniVersion")
    backend, admin = fields.text("backend"), fields.text("iptablesAdminChainName") or _ADMIN
    fields.text("firewalldZone")
    if fields.text("ingressPolicy") not in ("", "open") or not _NAME.fullmatch(admin) or len(admin) > CHAIN_NAME_MAX:
        raise Unsupported("ingressPolicy")
    fields.done()
    # Without a backend the program asks the system bus for firewalld.
    if backend != "iptables" and (backend or _has_bus()):
        raise Unsupported("backend")
    if not both_known():
        raise Unsupported("iptables")
    return Firewall(about, admin)


def _has_bus() -> bool:
    return "DBUS_SYSTEM_BUS_ADDRESS" in os.environ or any(Path(path).exists() for path in _BUS)


def run(conf: Firewall, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    before = result.previous(invocation.config)
    if before is None and invocation.command in (Command.ADD, Command.CHECK):
        raise CniError(INTERNAL, "missing prevResult from earlier plugin")
    addresses = [ip.address for ip in before.ips] if before is not None else []
    for version in (4, 6):
        mine = [address for address in addresses if address.version == version]
        if not mine:
            continue
        steps = plan(conf, mine)
        match invocation.command:
            case Command.ADD:
                iptables(version).ensure(_TABLE, steps, deadline, look_first=True)
            case Command.DEL:
                own = [step for step in steps if isinstance(step, Entry) and not step.shared]
                iptables(version).remove(_TABLE, own, deadline)
            case Command.CHECK:
                gone = rules.missing(steps, iptables(version).look(_TABLE, rules.chains_of(steps), deadline))
                if gone is not None:
                    raise CniError(INTERNAL, f"expected rule {gone} not found")
            case _:
                pass
    return result.passed_on(invocation.config) if invocation.command is Command.ADD else {}


def plan(conf: Firewall, addresses: list[IpInterface]) -> list[Step]:
    """The chains and rules of a container's addresses, which are all of one IP version."""
    steps: list[Step] = [
        Chain(_CHAIN, shared=True),
        Chain(conf.admin, shared=True),
        Entry("FORWARD", (*_comment("CNI firewall plugin rules"), "-j", _CHAIN), first=True, shared=True),
        Entry(_CHAIN, (*_comment("CNI firewall plugin admin overrides"), "-j", conf.admin), first=True, shared=True),
    ]
    for address in addresses:
        one = f"{address.ip}/{address.max_prefixlen}"
        steps += [
            Entry(_CHAIN, ("-d", one, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")),
            Entry(_CHAIN, ("-s", one, "-j", "ACCEPT")),
        ]
    return steps


def _comment(text: str) -> tuple[str, ...]:
    return ("-m", "comment", "--comment", text)
