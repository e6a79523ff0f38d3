"""The plugin ``host-local``: addresses from ranges, kept in files that the program of that name shares."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface

from forgeone_shim.deadline import Deadline
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown import leases
from forgeone_shim.network.cni.wellknown.args import known_args
from forgeone_shim.network.cni.wellknown.conf import ATTACHMENTS, IpAddress, Unsupported, address
from forgeone_shim.network.cni.wellknown.leases import Leases
from forgeone_shim.network.cni.wellknown.ranges import Ipam, RangeSet, read_alone, read_wanted
from forgeone_shim.network.cni.wellknown.result import INTERNAL, INVALID_CONFIG, Ip, Result, render


def read(config: Mapping[str, object]) -> Ipam:
    """The configuration of ``host-local`` by itself."""
    return read_alone(config)


def run(ipam: Ipam, invocation: Invocation, deadline: Deadline) -> Json:
    """Do what an invocation says."""
    match invocation.command:
        case Command.ADD:
            return render(add(ipam, invocation, deadline), ipam.network.version)
        case Command.DEL:
            delete(ipam, invocation, deadline)
        case Command.CHECK:
            check(ipam, invocation, deadline)
        case Command.GC:
            collect(ipam, invocation, deadline)
        case Command.STATUS:
            pass
    return {}


def add(ipam: Ipam, invocation: Invocation, deadline: Deadline) -> Result:
    """Lease an address of each range set, all or none.

    :raises CniError: one of them has none left, or an address asked for cannot be had.
    """
    container_id, interface = invocation.container_id, invocation.ifname
    wanted = dict.fromkeys((*_asked_for(invocation), *ipam.wanted))
    with leases.locked(ipam.data_dir, ipam.network.name, deadline) as held:
        ips: list[Ip] = []
        try:
            for place, ranges in enumerate(ipam.sets):
                mine = next((item for item in wanted if ranges.range_of(item) is not None), None)
                if mine is not None:
                    del wanted[mine]
                ips.append(_lease(held, ranges, place, invocation, mine))
            if wanted:
                raise CniError(INTERNAL, f"failed to allocate all requested IPs: {' '.join(map(str, wanted))}")
        except BaseException:
            # Before anything was leased, what a container has is not this call's to give back.
            if ips:
                held.release(container_id, interface)
            raise
    return Result(ips=tuple(ips), routes=ipam.routes)


def _asked_for(invocation: Invocation) -> tuple[IpAddress, ...]:
    value = known_args(invocation, "IP").get("IP", "")
    try:
        return (read_wanted(value),) if value else ()
    except Unsupported as error:
        raise CniError(INTERNAL, f"ARGS: error parsing IP: {value!r} is not an address") from error


def _lease(held: Leases, ranges: RangeSet, place: int, invocation: Invocation, wanted: IpAddress | None) -> Ip:
    container_id, interface = invocation.container_id, invocation.ifname
    if wanted is not None:
        at = ranges.range_of(wanted)
        if at is None or wanted == at.gateway:
            raise CniError(INTERNAL, f"failed to allocate for range {place}: requested ip {wanted} is subnet's gateway")
        if not held.reserve(wanted, container_id, interface, place):
            what = f"requested IP address {wanted} is not available in range set {ranges}"
            raise CniError(INTERNAL, f"failed to allocate for range {place}: {what}")
        return Ip(ip_interface((wanted.packed, at.subnet.prefixlen)), at.gateway)
    for name in held.of(container_id, interface):
        if _is_of(name, ranges):
            what = f"{name} has been allocated to {container_id}, duplicate allocation is not allowed"
            raise CniError(INTERNAL, f"failed to allocate for range {place}: {what}")
    for candidate, at in ranges.candidates(held.last(place)):
        if held.reserve(candidate, container_id, interface, place):
            return Ip(ip_interface((candidate.packed, at.subnet.prefixlen)), at.gateway)
    raise CniError(INTERNAL, f"failed to allocate for range {place}: no IP addresses available in range set: {ranges}")


def _is_of(name: str, ranges: RangeSet) -> bool:
    try:
        return ranges.range_of(address(name)) is not None
    except Unsupported:
        return False


def delete(ipam: Ipam, invocation: Invocation, deadline: Deadline) -> None:
    """Give back what a container's interface has; nothing is no error."""
    known_args(invocation, "IP")
    with leases.locked(ipam.data_dir, ipam.network.name, deadline) as held:
        held.release(invocation.container_id, invocation.ifname)


def check(ipam: Ipam, invocation: Invocation, deadline: Deadline) -> None:
    """A container's interface has an address, whichever it is.

    :raises CniError: it has none.
    """
    known_args(invocation, "IP")
    with leases.locked(ipam.data_dir, ipam.network.name, deadline) as held:
        if not held.of(invocation.container_id, invocation.ifname):
            what = f"host-local: Failed to find address added by container {invocation.container_id}"
            raise CniError(INTERNAL, what)


def collect(ipam: Ipam, invocation: Invocation, deadline: Deadline) -> None:
    """Give back what belongs to no attachment that ``cni.dev/valid-attachments`` names.

    :raises CniError: the list is missing or malformed; nothing is given back then.
    """
    valid = invocation.config.get(ATTACHMENTS)
    if not isinstance(valid, list | tuple) or not all(isinstance(item, Mapping) for item in valid):
        raise CniError(INVALID_CONFIG, f"{ATTACHMENTS} is not a list of attachments")
    keep = {(str(item.get("containerID", "")), str(item.get("ifname", ""))) for item in valid}
    with leases.locked(ipam.data_dir, ipam.network.name, deadline) as held:
        held.keep(keep)
