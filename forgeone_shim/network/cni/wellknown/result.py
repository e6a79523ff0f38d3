"""The result of ADD, read from ``prevResult`` and written in a version (section 5 of the CNI specification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, Final

from forgeone_shim.network.cni.plugin import CniError, Json
from forgeone_shim.network.cni.wellknown.conf import Fields, IpAddress, Unsupported, address

INTERNAL: Final = 999
INVALID_CONFIG: Final = 7
IpInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; ``sandbox`` is the path of the namespace it is in, empty on the host."""

    name: str
    mac: str = ""
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class Ip:
    """An address with its prefix length; ``interface`` is the index of its interface."""

    address: IpInterface
    gateway: IpAddress | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route; without ``gateway`` through that of the addresses."""

    destination: IpInterface
    gateway: IpAddress | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What ADD did."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Json = field(default_factory=dict)


def render(result: Result, version: str) -> Json:
    """The result as a program writes it."""
    told: Json = {
        "cniVersion": version,
        "interfaces": [_told(name=i.name, mac=i.mac, sandbox=i.sandbox) for i in result.interfaces],
        "ips": [_render_ip(ip, version) for ip in result.ips],
        "routes": [_told(dst=str(route.destination), gw=_text(route.gateway)) for route in result.routes],
    }
    return {**{key: value for key, value in told.items() if value}, "dns": result.dns}


def _render_ip(ip: Ip, version: str) -> Json:
    told: Json = {} if ip.interface is None else {"interface": ip.interface}
    if version.startswith("0."):
        told = {"version": str(ip.address.version), **told}
    return told | _told(address=str(ip.address), gateway=_text(ip.gateway))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _told(**items: str) -> dict[str, Any]:
    return {key: value for key, value in items.items() if value}


def previous(config: Mapping[str, Any]) -> Result | None:
    """The result of the plugins before this one; ``None`` where there is none.

    :raises CniError: it is not one.
    """
    data = config.get("prevResult")
    if data is None:
        return None
    try:
        if not isinstance(data, Mapping) or data.get("cniVersion") != config.get("cniVersion"):
            raise Unsupported
        fields = Fields(data)
        return Result(
            tuple(_interface(Fields(item)) for item in fields.items("interfaces")),
            tuple(_ip(Fields(item)) for item in fields.items("ips")),
            tuple(_route(Fields(item)) for item in fields.items("routes")),
        )
    except (Unsupported, ValueError) as error:
        raise CniError(INTERNAL, "could not parse prevResult", str(error)) from error


def passed_on(config: Mapping[str, Any]) -> Json:
    """The previous plugins' result, for a plugin that has nothing to add to it."""
    return {**config["prevResult"], "dns": config["prevResult"].get("dns") or {}}


def _interface(fields: Fields) -> Interface:
    return Interface(fields.text("name"), fields.text("mac"), fields.text("sandbox"))


def _ip(fields: Fields) -> Ip:
    where = fields.maybe_number("interface", -(1 << 31), 1 << 31)
    return Ip(ip_interface(fields.text("address")), fields.address("gateway"), where)


def _route(fields: Fields) -> Route:
    return parse_route(fields)


def parse_route(fields: Fields) -> Route:
    """A route as configurations and results have it.

    :raises Unsupported: it is not one.
    """
    try:
        destination = ip_interface(fields.text("dst"))
    except ValueError as error:
        raise Unsupported("dst") from error
    gateway = fields.text("gw")
    return Route(destination, address(gateway) if gateway else None)
