"""The plugin ``bridge``: a container on a bridge of the host.

https://www.cni.dev/plugins/current/main/bridge/. What is read and worked out is here; what is done to the kernel is in
:mod:`.bridgelinks`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import NotFound
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import Netlink
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import bridgelinks, hostlocal, masquerade, ranges, result, veth
from forgeone_shim.network.cni.wellknown.args import known_args
from forgeone_shim.network.cni.wellknown.conf import (
    Fields,
    Network,
    Unsupported,
    link_name,
    mac,
    network,
)
from forgeone_shim.network.cni.wellknown.forwarding import forward
from forgeone_shim.network.cni.wellknown.inside import Inside, configure, remove
from forgeone_shim.network.cni.wellknown.result import INTERNAL, Interface, Ip, IpInterface, Result, Route

_DEFAULT_NAME: Final = "cni0"
_MTU_MAX: Final = 65535
# The container's interface among those of the result: behind the bridge and the host's end.
_INSIDE: Final = 2
_DEFAULT_ROUTES: Final = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True)
class Bridge:
    """What is configured of bridge; ``ipam`` is ``None`` for a network without addresses."""

    network: Network
    name: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    masquerade: bool
    mtu: int
    hairpin: bool
    promiscuous: bool
    detect_duplicates: bool
    mac: str
    ipam: ranges.Ipam | None


def read(config: Mapping[str, Any]) -> Bridge:
    """The configuration of bridge.

    :raises Unsupported: for what is left to the program, everything it would refuse included.
    """
    fields = Fields(config)
    about = network(fields)
    args, runtime = fields.child("args"), fields.child("runtimeConfig")
    told = args.child("cni")
    ipam_fields = fields.child("ipam")
    own_mac = mac(runtime.text("mac")) or mac(told.text("mac"))
    ipam = ranges.read(ipam_fields, about, told, runtime) if "type" in ipam_fields else None
    default = fields.flag("isDefaultGateway")
    bridge = Bridge(
        network=about,
        name=link_name(fields.text("bridge") or _DEFAULT_NAME),
        is_gateway=fields.flag("isGateway") or default,
        is_default_gateway=default,
        force_address=fields.flag("forceAddress"),
        masquerade=fields.flag("ipMasq"),
        mtu=fields.number("mtu", 0, _MTU_MAX),
        hairpin=fields.flag("hairpinMode"),
        promiscuous=fields.flag("promiscMode"),
        detect_duplicates=fields.flag("enabledad"),
        mac=own_mac,
        ipam=ipam,
    )
    if fields.flag("macspoofchk") or fields.number("vlan") or (bridge.hairpin and bridge.promiscuous):
        raise Unsupported("macspoofchk")
    if bridge.masquerade and ipam is not None and not masquerade.is_possible():
        raise Unsupported("ipMasq")
    for part in (ipam_fields, told, args, runtime, fields):
        part.done()
    return bridge


def run(bridge: Bridge, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    match invocation.command:
        case Command.ADD:
            asked = known_args(invocation, "MAC", *(["IP"] if bridge.ipam is not None else [])).get("MAC", "")
            if asked and not bridge.mac:
                bridge = replace(bridge, mac=_asked_mac(asked))
            return result.render(_add(bridge, invocation, deadline), bridge.network.version)
        case Command.DEL:
            _delete(bridge, invocation, deadline)
        case Command.CHECK:
            _check(bridge, invocation, deadline)
        case Command.GC if bridge.ipam is not None:
            hostlocal.collect(bridge.ipam, invocation, deadline)
        case _:
            pass
    return {}


def _asked_mac(value: str) -> str:
    try:
        return mac(value)
    except Unsupported as error:
        raise CniError(INTERNAL, f"ARGS: {value!r} is not a MAC address") from error


def plan_result(bridge: Bridge, leased: Result) -> Result:
    """What a container gets of what was leased: the default routes added that are configured and not there."""
    routes = list(leased.routes)
    ips = [replace(ip, interface=_INSIDE) for ip in leased.ips]
    if bridge.is_default_gateway:
        for version in dict.fromkeys(ip.address.version for ip in ips):
            text = _DEFAULT_ROUTES[version]
            gateways = [ip.gateway for ip in ips if ip.address.version == version]
            there = any(route.gateway is not None and str(route.destination) == text for route in routes)
            if not there:
                routes.append(Route(ip_interface(text), gateways[0]))
    return Result(ips=tuple(ips), routes=tuple(routes), dns=bridge.network.dns)


def plan_gateways(bridge: Bridge, ips: tuple[Ip, ...]) -> list[IpInterface]:
    """The addresses of the bridge itself, IPv4 first."""
    if not bridge.is_gateway:
        return []
    found = [ip_interface((ip.gateway.packed, ip.address.network.prefixlen)) for ip in ips if ip.gateway is not None]
    return sorted(dict.fromkeys(found), key=lambda address: address.version)


def _add(bridge: Bridge, invocation: Invocation, deadline: Deadline) -> Result:
    about, container_id = bridge.network, invocation.container_id
    with ExitStack() as undo, ExitStack() as open_files:
        netns = os.open(invocation.netns, os.O_RDONLY | os.O_CLOEXEC)
        open_files.callback(os.close, netns)
        netlink = open_files.enter_context(Netlink())
        known = bridgelinks.ensure(netlink, bridge.name, bridge.mtu, promiscuous=bridge.promiscuous)
        planned = Result(dns=about.dns)
        if bridge.ipam is not None:
            leased = hostlocal.add(bridge.ipam, _for_ipam(invocation), deadline)
            undo.callback(hostlocal.delete, bridge.ipam, _for_ipam(invocation), Deadline())
            planned = plan_result(bridge, leased)
        deadline.check("before the container's interface")
        port = bridgelinks.Port(hairpin=bridge.hairpin, mtu=bridge.mtu, mac=bridge.mac)
        end = bridgelinks.add_port(netlink, known, netns, invocation.ifname, port)
        undo.callback(veth.delete, end.name)
        inside = Inside(invocation.ifname, planned.ips, planned.routes, bridge.detect_duplicates)
        container_mac = run_in(
            invocation.netns, lambda: configure(inside, deadline, with_addresses=bridge.ipam is not None)
        )
        interfaces = [Interface(end.name, end.mac), Interface(invocation.ifname, container_mac, invocation.netns)]
        if bridge.ipam is not None:
            bridgelinks.wait_for_port(netlink, end, deadline)
            gateways = plan_gateways(bridge, planned.ips)
            for address in gateways:
                bridgelinks.ensure_address(netlink, known, address, force=bridge.force_address)
            forward({address.version for address in gateways})
            if bridge.masquerade:
                addresses = [ip.address for ip in planned.ips]
                undo.callback(masquerade.remove, about.name, container_id, addresses, Deadline())
                masquerade.add(about.name, container_id, addresses, deadline)
        # The bridge has another MAC by now where it follows that of its ports.
        first = Interface(bridge.name, bridgelinks.find(netlink, bridge.name).mac)
        undo.pop_all()
    return replace(planned, interfaces=(first, *interfaces))


def _for_ipam(invocation: Invocation) -> Invocation:
    """The program hands its own arguments on, of which ``host-local`` does not know MAC, unless told to ignore it."""
    return replace(invocation, args={key: value for key, value in invocation.args.items() if key != "MAC"})


def _delete(bridge: Bridge, invocation: Invocation, deadline: Deadline) -> None:
    addresses: list[IpInterface] = []
    if invocation.netns:
        with suppress(NotFound):
            addresses = run_in(invocation.netns, lambda: remove(invocation.ifname))
    if bridge.ipam is not None:
        hostlocal.delete(bridge.ipam, _for_ipam(invocation), deadline)
        if bridge.masquerade:
            masquerade.remove(bridge.network.name, invocation.container_id, addresses, deadline)


def _check(bridge: Bridge, invocation: Invocation, deadline: Deadline) -> None:
    if bridge.ipam is not None:
        hostlocal.check(bridge.ipam, _for_ipam(invocation), deadline)
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "Required prevResult missing")
    bridgelinks.check(bridge.name, before, invocation.ifname, invocation.netns, promiscuous=bridge.promiscuous)
