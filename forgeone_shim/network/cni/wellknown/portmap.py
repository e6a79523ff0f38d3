"""The plugin ``portmap``: ports of the host that lead to a container, by iptables.

https://www.cni.dev/plugins/current/meta/portmap/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import structlog

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.namespaces import write_proc
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Netlink, NetlinkError
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import result, rtnl, rules
from forgeone_shim.network.cni.wellknown.conf import Fields, Network, Unsupported, address, chain_name, network
from forgeone_shim.network.cni.wellknown.iptables import both_known, find_iptables, iptables
from forgeone_shim.network.cni.wellknown.result import INTERNAL, IpInterface
from forgeone_shim.network.cni.wellknown.rules import Chain, Entry, Rule, Step
from forgeone_shim.network.conntrack import forget_udp
from forgeone_shim.network.host import IPV4_CONF

_TABLE: Final = "nat"
_DNAT, _SETMARK, _MASQ = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
_MARK_BIT: Final = 13
# The match "multiport" takes no more.
_PORTS_A_RULE: Final = 15
_COMMENT_MAX: Final = 255
_PROTOCOLS: Final = ("sctp", "tcp", "udp")
# A chain, that is, and not an extension of iptables, whose names have no hyphen.
_CHAIN: Final = re.compile(r"[A-Z0-9]+(-[A-Z0-9]+)+")


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host and where it leads; ``host_ip`` is empty for every address."""

    protocol: str
    host_port: int
    container_port: int
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Portmap:
    """What is configured of portmap; ``mark_chain`` is empty for its own."""

    network: Network
    ports: tuple[Port, ...]
    snat: bool
    mark_bit: int
    mark_chain: str


def read(config: Mapping[str, Any]) -> Portmap:
    """The configuration of portmap.

    :raises Unsupported: for what is left to the program.
    """
    fields = Fields(config)
    about = network(fields)
    runtime = fields.child("runtimeConfig")
    ports = tuple(_read_port(Fields(item)) for item in runtime.items("portMappings"))
    snat = fields.maybe_flag("snat")
    bit = fields.maybe_number("markMasqBit", 0, 31)
    chain = fields.text("externalSetMarkChain")
    if fields.items("conditionsV4") or fields.items("conditionsV6") or (chain and bit is not None):
        raise Unsupported("conditions")
    if chain and (not _CHAIN.fullmatch(chain) or len(chain) > 28):
        raise Unsupported("externalSetMarkChain")
    runtime.done()
    fields.done()
    if ports and not both_known():
        raise Unsupported("iptables")
    return Portmap(about, ports, True if snat is None else snat, _MARK_BIT if bit is None else bit, chain)


def _read_port(fields: Fields) -> Port:
    protocol, host_ip = fields.text("protocol"), fields.text("hostIP")
    if protocol not in _PROTOCOLS:
        raise Unsupported("protocol")
    if host_ip:
        address(host_ip)
    port = Port(protocol, fields.number("hostPort", 1, 65535), fields.number("containerPort", 1, 65535), host_ip)
    fields.done()
    return port


def run(conf: Portmap, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    match invocation.command:
        case Command.ADD:
            return _add(conf, invocation, deadline)
        case Command.DEL:
            _delete(conf, invocation, deadline)
        case Command.CHECK:
            _check(conf, invocation, deadline)
        case _:
            pass
    return {}


def _add(conf: Portmap, invocation: Invocation, deadline: Deadline) -> Json:
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "must be called as chained plugin")
    if conf.ports:
        try:
            for container in container_addresses(before, invocation.ifname):
                steps = plan(conf, invocation.container_id, container)
                iptables(container.version).ensure(_TABLE, steps, deadline)
                if conf.snat and container.version == 4:
                    _route_localhost(container)
        except BaseException:
            with suppress(CniError):
                _delete(conf, invocation, Deadline())
            raise
        udp = {port.host_port for port in conf.ports if port.protocol == "udp"}
        if udp:
            _forget(udp)
    return result.passed_on(invocation.config)


def _delete(conf: Portmap, invocation: Invocation, deadline: Deadline) -> None:
    result.previous(invocation.config)
    if not conf.ports:
        return
    chain = _chain(conf, invocation.container_id)
    calls = [(entry.chain, entry.rule) for entry in _calls(conf, invocation.container_id)]
    found = [item for item in (find_iptables(4), find_iptables(6)) if item is not None]
    if not found:
        raise CniError(INTERNAL, "neither iptables nor ip6tables usable")
    for each in found:
        each.drop(_TABLE, chain, [_DNAT], deadline, dict.fromkeys(calls))


def _check(conf: Portmap, invocation: Invocation, deadline: Deadline) -> None:
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "Required prevResult missing")
    if not conf.ports:
        return
    for container in container_addresses(before, invocation.ifname):
        steps = plan(conf, invocation.container_id, container)
        mine = [step for step in steps if not step.shared]
        gone = rules.missing(mine, iptables(container.version).look(_TABLE, rules.chains_of(mine), deadline))
        if gone is not None:
            raise CniError(
                INTERNAL, f"could not check ipv{container.version} dnat: {gone} not found in iptables table nat"
            )


def container_addresses(before: result.Result, interface: str) -> list[IpInterface]:
    """The first address of each IP version that is the container's own, IPv4 first."""
    found: dict[int, IpInterface] = {}
    for ip in before.ips:
        at = ip.interface
        if at is not None and 0 <= at < len(before.interfaces):
            where = before.interfaces[at]
            if where.name != interface or not where.sandbox:
                continue
        found.setdefault(ip.address.version, ip.address)
    return [found[version] for version in (4, 6) if version in found]


def plan(conf: Portmap, container_id: str, container: IpInterface) -> list[Step]:
    """All the chains and rules that lead the ports to one address of a container."""
    steps: list[Step] = []
    mark = f"{1 << conf.mark_bit:#x}/{1 << conf.mark_bit:#x}"
    if conf.snat and not conf.mark_chain:
        steps += [
            Chain(_SETMARK, shared=True),
            Entry(_SETMARK, (*_comment("CNI portfwd masquerade mark"), "-j", "MARK", "--set-xmark", mark), shared=True),
            Chain(_MASQ, shared=True),
            Entry(_MASQ, ("-m", "mark", "--mark", mark, "-j", "MASQUERADE"), shared=True),
            # First, or the masquerading of bridge and ptp is before it.
            Entry("POSTROUTING", (*_comment("CNI portfwd requiring masquerade"), "-j", _MASQ), first=True, shared=True),
        ]
    local: Rule = ("-m", "addrtype", "--dst-type", "LOCAL", "-j", _DNAT)
    steps += [
        Chain(_DNAT, shared=True),
        Entry("PREROUTING", local, shared=True),
        Entry("OUTPUT", local, shared=True),
        Chain(_chain(conf, container_id)),
    ]
    for port in conf.ports:
        steps += _port_steps(conf, container_id, container, port)
    return [*steps, *_calls(conf, container_id)]


def _port_steps(conf: Portmap, container_id: str, container: IpInterface, port: Port) -> list[Step]:
    at: Rule = ()
    if port.host_ip:
        host = ip_address(port.host_ip)
        if host.version != container.version:
            return []
        if not host.is_unspecified:
            at = ("-d", f"{host}/{host.max_prefixlen}")
    chain, marks = _chain(conf, container_id), conf.mark_chain or _SETMARK
    match: Rule = (*at, "-p", port.protocol, "-m", port.protocol, "--dport", str(port.host_port))
    steps: list[Step] = []
    if conf.snat:
        # Of a container that calls itself, and of a process of the host that calls localhost, the source must go.
        steps.append(Entry(chain, ("-s", str(container.network), *match, "-j", marks)))
        if container.version == 4:
            steps.append(Entry(chain, ("-s", "127.0.0.1/32", *match, "-j", marks)))
    target = f"{container.ip}" if container.version == 4 else f"[{container.ip}]"
    steps.append(Entry(chain, (*match, "-j", "DNAT", "--to-destination", f"{target}:{port.container_port}")))
    return steps


def _calls(conf: Portmap, container_id: str) -> list[Entry]:
    """The rules that lead to a container's chain; they are the same for both IP versions."""
    comment = _comment(_short(f'dnat name: "{conf.network.name}" id: "{container_id}"'))
    entries: list[Entry] = []
    for protocol in _PROTOCOLS:
        ports = [str(port.host_port) for port in conf.ports if port.protocol == protocol]
        for start in range(0, len(ports), _PORTS_A_RULE):
            listed = ",".join(ports[start : start + _PORTS_A_RULE])
            match = ("-p", protocol, *comment, "-m", "multiport", "--dports", listed)
            entries.append(Entry(_DNAT, (*match, "-j", _chain(conf, container_id))))
    return entries


def _chain(conf: Portmap, container_id: str) -> str:
    return chain_name("DN-", conf.network.name, container_id)


def _comment(text: str) -> Rule:
    return ("-m", "comment", "--comment", text)


def _short(text: str) -> str:
    return text if len(text) <= _COMMENT_MAX else text[: _COMMENT_MAX - 2] + "..."


def _route_localhost(container: IpInterface) -> None:
    """Let packets from 127.0.0.1 out by the interface that leads to the container. Raises OSError."""
    with Netlink() as netlink:
        try:
            index = rtnl.route_interface(netlink.ask(rtnl.route_to(container.ip)))
            name = rtnl.links(netlink.ask(rtnl.link(index=index)))[0].name
        except NetlinkError:
            return
    write_proc(f"{IPV4_CONF}/{name}/route_localnet", "1")


def _forget(ports: Collection[int]) -> None:
    """Forget flows that went elsewhere; the container has its ports without it, too."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            forget_udp(netlink, ports)
    except OSError as error:
        structlog.get_logger().warning("stale UDP flows not forgotten", ports=sorted(ports), error=str(error))
