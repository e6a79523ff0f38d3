"""Host ports: which of them collide, and what a pod's ones look like to the kernel. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from engines.base import PortMapping, PortProtocol
from forgeone_shim.errors import InvalidInput

PROTOCOL_NUMBER: Final = {PortProtocol.TCP: 6, PortProtocol.UDP: 17, PortProtocol.SCTP: 132}


@dataclass(frozen=True, slots=True)
class HostPort:
    """A checked host port. ``host_ip``: "" every address, "0.0.0.0" every IPv4 one, "::" every IPv6 one."""

    protocol: PortProtocol
    host_ip: str
    host_port: int
    container_port: int

    @property
    def key(self) -> str:
        """Under which all host ports that might collide with this one are found."""
        return f"{self.protocol}/{self.host_port}"

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions it is reachable by."""
        return (4, 6) if not self.host_ip else (ip_address(self.host_ip).version,)

    @property
    def is_wildcard(self) -> bool:
        """Whether every address of its families is meant."""
        return not self.host_ip or ip_address(self.host_ip).is_unspecified

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip or "*"
        return f"{host}:{self.host_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a protocol and port on an address."""

    host_ip: str
    sandbox_id: str


@dataclass(frozen=True, slots=True)
class Holders:
    """Everyone who has a protocol and port, each on addresses of his own."""

    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Element:
    """An entry of a map of the nftables table, in the kernel's bytes."""

    map: str
    key: bytes
    value: bytes


def plan_host_ports(mappings: Iterable[PortMapping]) -> tuple[HostPort, ...]:
    """The host ports asked for; a mapping without one (0) asks for nothing, one asked for twice counts once.

    :raises InvalidInput: a port or address cannot be used, or two mappings of the pod contradict each other.
    """
    planned: list[HostPort] = []
    for index, mapping in enumerate(mappings):
        if mapping.host_port == 0:
            continue
        port = _check(f"port_mappings[{index}]", mapping)
        for other in planned:
            if collide(port.host_ip, other.host_ip) and port.key == other.key and port != other:
                raise InvalidInput(f"port_mappings[{index}]", f"{port} collides with {other} of the same pod")
        if port not in planned:
            planned.append(port)
    return tuple(planned)


def _check(field: str, mapping: PortMapping) -> HostPort:
    for name, number in (("host_port", mapping.host_port), ("container_port", mapping.container_port)):
        if not 1 <= number <= 65535:
            raise InvalidInput(f"{field}.{name}", f"{number} is not between 1 and 65535")
    host_ip = ""
    if mapping.host_ip:
        try:
            address = ip_address(mapping.host_ip)
        except ValueError:
            raise InvalidInput(f"{field}.host_ip", f"{mapping.host_ip!r} is not an IP address") from None
        if isinstance(address, IPv6Address) and address.scope_id:
            raise InvalidInput(f"{field}.host_ip", "an address with a scope cannot be matched")
        host_ip = str(address)
    return HostPort(mapping.protocol, host_ip, mapping.host_port, mapping.container_port)


def collide(one: str, other: str) -> bool:
    """Whether two host addresses ("": all) share an address, as two binds of one port would."""
    if not one or not other or one == other:
        return True
    first, second = ip_address(one), ip_address(other)
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def elements(ports: Sequence[HostPort], ips: Iterable[str]) -> tuple[Element, ...]:
    """The map entries that lead a pod's host ports to its addresses."""
    pod = {address.version: address for address in map(ip_address, ips)}
    return tuple(_element(port, family, pod[family]) for port in ports for family in port.families if family in pod)


def _element(port: HostPort, family: int, pod: IPv4Address | IPv6Address) -> Element:
    protocol = _pad(bytes([PROTOCOL_NUMBER[port.protocol]]))
    value = pod.packed + _pad(port.container_port.to_bytes(2, "big"))
    number = _pad(port.host_port.to_bytes(2, "big"))
    if port.is_wildcard:
        return Element(f"any{family}", protocol + number, value)
    return Element(f"at{family}", protocol + ip_address(port.host_ip).packed + number, value)


def _pad(data: bytes) -> bytes:
    """Each part of a concatenated key or value fills whole 32-bit registers."""
    return data + b"\0" * (-len(data) % 4)
