"""What the plugin ``host-local`` hands out: ranges of addresses, and whose turn is next. Pure.

https://www.cni.dev/plugins/current/ipam/host-local/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from typing import Final

from forgeone_shim.network.cni.wellknown.conf import Fields, IpAddress, Network, Unsupported, address, network
from forgeone_shim.network.cni.wellknown.result import Route, parse_route

DATA_DIR: Final = "/var/lib/cni/networks"


@dataclass(frozen=True)
class Range:
    """Addresses from ``start`` to ``end``, both inclusive, but for the gateway."""

    subnet: IPv4Network | IPv6Network
    gateway: IpAddress
    start: IpAddress
    end: IpAddress

    def __contains__(self, wanted: IpAddress) -> bool:
        return wanted.version == self.subnet.version and int(self.start) <= int(wanted) <= int(self.end)

    def overlaps(self, other: Range) -> bool:
        """Whether an address is in both."""
        return self.start in other or self.end in other or other.start in self or other.end in self

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True)
class RangeSet:
    """Ranges of which a container gets one address."""

    ranges: tuple[Range, ...]

    def range_of(self, wanted: IpAddress) -> Range | None:
        """The range an address is of."""
        return next((item for item in self.ranges if wanted in item), None)

    def candidates(self, last: IpAddress | None) -> Iterator[tuple[IpAddress, Range]]:
        """The addresses to try, in the order of ``host-local``: round robin, from behind the one reserved last."""
        place = self.range_of(last) if last is not None else None
        position = self.ranges.index(place) if place is not None else 0
        current: IpAddress | None = last if place is not None else None
        first: IpAddress | None = None
        while True:
            at = self.ranges[position]
            if current is None:
                current = at.start
            elif current == at.end:
                position = (position + 1) % len(self.ranges)
                at = self.ranges[position]
                current = at.start
            else:
                current += 1
            if first is None:
                first = current
            elif current == first:
                return
            if current != at.gateway:
                yield current, at

    @cached_property
    def version(self) -> int:
        """The IP version all its addresses have."""
        return self.ranges[0].subnet.version

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


@dataclass(frozen=True)
class Ipam:
    """What is configured of ``host-local``; ``wanted`` are addresses that were asked for by name."""

    network: Network
    data_dir: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    wanted: tuple[IpAddress, ...] = ()


def read(fields: Fields, about: Network, args: Fields, runtime: Fields) -> Ipam:
    """The configuration's ``ipam`` section, with what ``args`` and ``runtimeConfig`` say of addresses.

    :raises Unsupported: for what is left to the program, everything it would refuse included.
    """
    if fields.text("type") != "host-local" or fields.text("resolvConf"):
        raise Unsupported("ipam")
    data_dir = fields.text("dataDir") or DATA_DIR
    if not data_dir.startswith("/") or "\0" in data_dir:
        raise Unsupported("dataDir")
    fields.text("name")
    sets = [_read_set(item) for item in runtime.items("ipRanges")]
    if "subnet" in fields:
        sets.append(RangeSet((_read_range(fields),)))
    sets += [_read_set(item) for item in fields.items("ranges")]
    routes = tuple(_read_route(Fields(item)) for item in fields.items("routes"))
    wanted = tuple(read_wanted(value) for value in (*args.texts("ips"), *runtime.texts("ips")))
    fields.done()
    if not sets or any(a.overlaps(b) for one, two in combinations(sets, 2) for a in one.ranges for b in two.ranges):
        raise Unsupported("ranges")
    return Ipam(about, data_dir, tuple(sets), routes, wanted)


def read_alone(config: object) -> Ipam:
    """The configuration of ``host-local`` called by itself or by another plugin."""
    fields = Fields(config)
    about = network(fields)
    args, runtime = fields.child("args"), fields.child("runtimeConfig")
    told = args.child("cni")
    ipam = read(fields.child("ipam"), about, told, runtime)
    for part in (told, args, runtime):
        part.done()
    return ipam


def read_wanted(value: str) -> IpAddress:
    """An address that is asked for, perhaps with a prefix length, which is ignored.

    :raises Unsupported: it is not one.
    """
    base, slash, length = value.partition("/")
    found = address(base)
    if slash and not (length.isdigit() and int(length) <= found.max_prefixlen):
        raise Unsupported(value)
    return found


def _read_set(data: object) -> RangeSet:
    if not isinstance(data, list | tuple) or not data:
        raise Unsupported("ranges")
    ranges = []
    for item in data:
        fields = Fields(item)
        ranges.append(_read_range(fields))
        fields.done()
    if len({item.subnet.version for item in ranges}) > 1 or any(a.overlaps(b) for a, b in combinations(ranges, 2)):
        raise Unsupported("ranges")
    return RangeSet(tuple(ranges))


def _read_range(fields: Fields) -> Range:
    try:
        text = fields.text("subnet")
        base, slash, length = text.partition("/")
        if not slash or not length.isdigit():
            raise Unsupported("subnet")
        address(base)
        subnet = ip_network(text)
    except ValueError as error:
        raise Unsupported("subnet") from error
    # Counting on from an address that starts with a zero byte goes wrong in the program.
    if subnet.prefixlen > subnet.max_prefixlen - 2 or not subnet.network_address.packed[0]:
        raise Unsupported("subnet")
    last = subnet.broadcast_address if subnet.version == 6 else subnet.broadcast_address - 1
    gateway = fields.address("gateway") or subnet.network_address + 1
    start = fields.address("rangeStart") or subnet.network_address + 1
    end = fields.address("rangeEnd") or last
    if gateway.version != subnet.version or start not in subnet or end not in subnet or int(start) > int(end):
        raise Unsupported("range")
    return Range(subnet, gateway, start, end)


def _read_route(fields: Fields) -> Route:
    route = parse_route(fields)
    fields.done()
    if route.destination.ip != route.destination.network.network_address:
        raise Unsupported("routes")
    if route.gateway is not None and route.gateway.version != route.destination.version:
        raise Unsupported("routes")
    return route
