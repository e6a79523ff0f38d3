"""What a pod network consists of, worked out from its configuration alone: names, ranges, addresses."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import Final

from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.errors import InvalidInput

POD_INTERFACE: Final = "eth0"
LINK_NAME_MAX: Final = 15

_GATEWAY_SLOT: Final = 1
_FIRST_SLOT: Final = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """A pod's addresses, each with its network's prefix length; ``ipv6`` is ``None`` in an IPv4-only network."""

    ipv4: IPv4Interface
    ipv6: IPv6Interface | None

    @property
    def all(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """IPv4 first."""
        return (self.ipv4,) if self.ipv6 is None else (self.ipv4, self.ipv6)


@dataclass(frozen=True, slots=True)
class Layout:
    """The checked configuration. A pod has a slot: its place in the IPv4 range and, the same, in the IPv6 range."""

    bridge: str
    table: str
    link_prefix: str
    ipv4: IPv4Network
    ipv6: IPv6Network | None
    mtu: int
    masquerade: bool

    @property
    def first_slot(self) -> int:
        """The first slot a pod may have: behind the network's own address and the gateway."""
        return _FIRST_SLOT

    @property
    def capacity(self) -> int:
        """How many pods fit."""
        fits = self.ipv4.num_addresses - _FIRST_SLOT - 1
        return fits if self.ipv6 is None else min(fits, self.ipv6.num_addresses - _FIRST_SLOT)

    @property
    def gateway(self) -> Addresses:
        """The bridge's own addresses."""
        return self.addresses(_GATEWAY_SLOT)

    def addresses(self, slot: int) -> Addresses:
        """The addresses of a slot."""
        ipv4 = IPv4Interface((self.ipv4[slot], self.ipv4.prefixlen))
        ipv6 = None if self.ipv6 is None else IPv6Interface((self.ipv6[slot], self.ipv6.prefixlen))
        return Addresses(ipv4, ipv6)

    def without_ipv6(self) -> Layout:
        """The same network on a host that has no IPv6."""
        return Layout(self.bridge, self.table, self.link_prefix, self.ipv4, None, self.mtu, self.masquerade)

    def link_name(self, sandbox_id: str) -> str:
        """The host end of a pod's veth pair, from the sandbox id alone."""
        return self._name(sandbox_id, b"")

    def ifb_name(self, sandbox_id: str) -> str:
        """The interface by which a pod with a limit on it sends, from the sandbox id alone."""
        return self._name(sandbox_id, b"ifb")

    def _name(self, sandbox_id: str, what: bytes) -> str:
        digits = LINK_NAME_MAX - len(self.link_prefix)
        return self.link_prefix + blake2b(sandbox_id.encode(), digest_size=8, person=what).hexdigest()[:digits]


def mac_address(address: IPv4Interface) -> str:
    """The MAC of whoever has an IPv4 address: one for each, so that a neighbour's cache outlives a change of owner."""
    return "0a:58:" + address.ip.packed.hex(":")


def plan_layout(config: NetworkConfig) -> Layout:
    """The layout of a configuration, whose names and sizes are sound by its own checks; its ranges are checked here.

    :raises InvalidInput: pods cannot have addresses of such a range.
    """
    return Layout(
        bridge=config.bridge,
        table=config.table,
        link_prefix=config.link_prefix,
        ipv4=_ipv4_range(config.ipv4),
        ipv6=_ipv6_range(config.ipv6) if config.ipv6 else None,
        mtu=config.mtu,
        masquerade=config.masquerade,
    )


def _ipv4_range(value: str) -> IPv4Network:
    network = _range("network.ipv4", value)
    if not isinstance(network, IPv4Network) or not 8 <= network.prefixlen <= 30:
        raise InvalidInput("network.ipv4", f"{value!r} is not an IPv4 range between /8 and /30")
    return network


def _ipv6_range(value: str) -> IPv6Network:
    network = _range("network.ipv6", value)
    if not isinstance(network, IPv6Network) or not 48 <= network.prefixlen <= 126:
        raise InvalidInput("network.ipv6", f"{value!r} is not an IPv6 range between /48 and /126")
    return network


def _range(field: str, value: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(value)
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None
    if network.is_multicast or network.is_loopback or network.is_unspecified or network.is_link_local:
        raise InvalidInput(field, f"{value!r} holds addresses no pod can have")
    return network


def parse_interface(value: str) -> IPv4Interface | IPv6Interface:
    """An address with its prefix length, as this room stores it."""
    return ip_interface(value)
