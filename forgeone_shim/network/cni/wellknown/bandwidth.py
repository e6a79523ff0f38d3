"""The plugin ``bandwidth``: how fast a container may receive and send.

https://www.cni.dev/plugins/current/meta/bandwidth/
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel import traffic
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import Netlink, NetlinkError
from forgeone_shim.kernel.traffic import Bucket
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import result, rtnl
from forgeone_shim.network.cni.wellknown.conf import (
    LINK_NAME_MAX,
    Fields,
    Network,
    Unsupported,
    hashed_name,
    network,
)
from forgeone_shim.network.cni.wellknown.result import INTERNAL
from forgeone_shim.network.cni.wellknown.rtnl import Link
from forgeone_shim.network.links import delete_link

_KEYS: Final = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_BURST_BITS_MAX: Final = ((1 << 32) - 1) * 8 - 1
_RATE_BITS_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What is configured of bandwidth: ``ingress`` is what the container receives, ``egress`` what it sends."""

    network: Network
    ingress: Bucket | None
    egress: Bucket | None


def read(config: Mapping[str, Any]) -> Bandwidth:
    """The configuration of bandwidth; rates in bits a second and bursts in bits.

    :raises Unsupported: for what is left to the program, everything it would refuse included.
    """
    fields = Fields(config)
    about = network(fields)
    runtime = fields.child("runtimeConfig")
    # One of the keys in the configuration itself puts aside what the runtime says.
    own = any(key in fields for key in _KEYS)
    asked = runtime.child("bandwidth")
    numbers = _read_numbers(asked)
    asked.done()
    if own:
        numbers = _read_numbers(fields)
    runtime.done()
    fields.done()
    return Bandwidth(about, _plan(*numbers[:2]), _plan(*numbers[2:]))


def _read_numbers(fields: Fields) -> list[int]:
    return [fields.number(key, 0, _BURST_BITS_MAX if key.endswith("Burst") else _RATE_BITS_MAX) for key in _KEYS]


def _plan(rate: int, burst: int) -> Bucket | None:
    if not rate and not burst:
        return None
    try:
        bucket = traffic.plan_bucket(rate, burst, traffic.ticks_a_microsecond())
    except (OSError, ValueError, ArithmeticError) as error:
        raise Unsupported("bandwidth") from error
    if bucket is None:
        raise Unsupported("bandwidth")
    return bucket


def run(conf: Bandwidth, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    deadline.check("before bandwidth")
    match invocation.command:
        case Command.ADD:
            return _add(conf, invocation)
        case Command.DEL:
            result.previous(invocation.config)
            with Netlink() as netlink:
                _delete(netlink, _ifb_name(conf, invocation))
        case Command.CHECK:
            _check(conf, invocation)
        case _:
            pass
    return {}


def _ifb_name(conf: Bandwidth, invocation: Invocation) -> str:
    return hashed_name(LINK_NAME_MAX, "bwp", conf.network.name, invocation.container_id)


def _add(conf: Bandwidth, invocation: Invocation) -> Json:
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "must be called as chained plugin")
    told = result.passed_on(invocation.config)
    if conf.ingress is None and conf.egress is None:
        return told
    with Netlink() as netlink, ExitStack() as undo:
        host = _host_link(netlink, before, invocation)
        if conf.ingress is not None:
            netlink.ask(traffic.add_bucket(host.index, conf.ingress))
            undo.callback(netlink.try_all, [traffic.delete_bucket(host.index)])
        if conf.egress is not None:
            name = _ifb_name(conf, invocation)
            netlink.ask(rtnl.add_ifb(name, host.mtu))
            undo.callback(_delete, netlink, name)
            ifb = rtnl.links(netlink.ask(rtnl.link(name)))[0]
            netlink.ask(traffic.add_ingress(host.index))
            undo.callback(netlink.try_all, [traffic.delete_ingress(host.index)])
            netlink.ask(traffic.redirect(host.index, ifb.index))
            netlink.ask(traffic.add_bucket(ifb.index, conf.egress))
            told["interfaces"] = [*told.get("interfaces", ()), {"name": name, "mac": ifb.mac}]
        undo.pop_all()
    return told


def _delete(netlink: Netlink, name: str) -> None:
    try:
        netlink.ask(delete_link(name))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise


def _host_link(netlink: Netlink, before: result.Result, invocation: Invocation) -> Link:
    """The host's end of the container's veth pair."""

    def peer() -> int:
        with Netlink() as inside:
            found = rtnl.links(inside.ask(rtnl.link(invocation.ifname)))[0]
        return found.peer if found.kind == "veth" else 0

    index = run_in(invocation.netns, peer)
    if not index:
        raise CniError(INTERNAL, f"container interface {invocation.ifname} has no veth peer")
    try:
        host = rtnl.links(netlink.ask(rtnl.link(index=index)))[0]
    except NetlinkError as error:
        raise CniError(INTERNAL, f"veth peer with index {index} is not in host ns") from error
    if not any(not known.sandbox and known.name == host.name for known in before.interfaces):
        raise CniError(INTERNAL, "no veth peer of container interface found in host ns")
    return host


def _check(conf: Bandwidth, invocation: Invocation) -> None:
    before = result.previous(invocation.config)
    if before is None:
        raise CniError(INTERNAL, "must be called as a chained plugin")
    with Netlink() as netlink:
        host = _host_link(netlink, before, invocation)
        if conf.ingress is not None:
            _expect(netlink, host, conf.ingress)
        if conf.egress is not None:
            try:
                ifb = rtnl.links(netlink.ask(rtnl.link(_ifb_name(conf, invocation))))[0]
            except NetlinkError as error:
                raise CniError(INTERNAL, f"get ifb device: {error.strerror}") from error
            _expect(netlink, ifb, conf.egress)


def _expect(netlink: Netlink, link: Link, bucket: Bucket) -> None:
    found = traffic.buckets(netlink.ask(traffic.list_qdiscs(link.index)), link.index)
    if bucket not in found:
        raise CniError(INTERNAL, f"{link.name} has {found or 'no'} token bucket filter where {bucket} was made")
