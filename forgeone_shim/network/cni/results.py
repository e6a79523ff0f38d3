"""What ADD gave a pod: read strictly whatever version it is in, written in the one that is asked for.

CNI specification, section 5. Versions before 1.0.0 name each address's family; 1.1.0 added to interfaces and routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any, Final

from engines.base import DNSConfig
from forgeone_shim.network.cni.plugin import VERSIONS, Json

_INTERFACE_TEXTS: Final = ("name", "mac", "sandbox")
_INTERFACE_TEXTS_11: Final = ("socketPath", "pciID")
_ROUTE_NUMBERS_11: Final = ("mtu", "advmss", "priority", "table", "scope")


class BadResult(ValueError):
    """What a plugin answered is no result; says where and why."""


@dataclass(frozen=True, slots=True)
class Got:
    """What a pod has of a network: its addresses on ``interface`` (the pod's name of it) in the result's order."""

    ips: tuple[str, ...]
    interface: str
    mac: str
    dns: DNSConfig | None


def convert(result: Mapping[str, Any], version: str) -> Json:
    """The same result in another version of the specification.

    A result that names no version has that of the configuration it answers, as everybody takes it.

    :raises BadResult: it is no result.
    """
    own = result.get("cniVersion") or version
    if own not in VERSIONS:
        raise BadResult(f"cniVersion {own!r} is not one of {', '.join(VERSIONS)}")
    since_11 = VERSIONS.index(version) >= VERSIONS.index("1.1.0")
    interfaces = [_interface(index, one, since_11=since_11) for index, one in enumerate(_list(result, "interfaces"))]
    before_10 = VERSIONS.index(version) < VERSIONS.index("1.0.0")
    ips = [_ip(index, one, len(interfaces), before_10=before_10) for index, one in enumerate(_list(result, "ips"))]
    routes = [_route(index, one, since_11=since_11) for index, one in enumerate(_list(result, "routes"))]
    told: Json = {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes}
    return {**{key: value for key, value in told.items() if value}, "dns": _dns(result.get("dns"))}


def read(result: Mapping[str, Any], ifname: str) -> Got:
    """What the pod's interface ``ifname`` got, of a converted result."""
    interfaces: list[Json] = result.get("interfaces", [])
    ours = {index for index, one in enumerate(interfaces) if one.get("sandbox") and one["name"] == ifname}
    ips = [
        str(ip_interface(ip["address"]).ip)
        for ip in result.get("ips", [])
        if ip.get("interface") is None or ip["interface"] in ours
    ]
    macs = [interfaces[index].get("mac", "") for index in sorted(ours)]
    told = result.get("dns") or {}
    dns = DNSConfig(
        servers=tuple(told.get("nameservers", ())),
        searches=tuple(told.get("search", ())) or ((told["domain"],) if told.get("domain") else ()),
        options=tuple(told.get("options", ())),
    )
    return Got(tuple(dict.fromkeys(ips)), ifname, macs[0] if macs else "", dns if dns != DNSConfig() else None)


def prefer(ips: tuple[str, ...], preference: str) -> tuple[str, ...]:
    """The pod's addresses, the first of the preferred family (``ipv4``, ``ipv6``) in front; ``cni``: as they are."""
    if preference == "cni":
        return ips
    wanted = 4 if preference == "ipv4" else 6
    first = next((ip for ip in ips if ip_address(ip).version == wanted), None)
    return ips if first is None else (first, *(ip for ip in ips if ip != first))


def _list(result: Mapping[str, Any], key: str) -> list[Any]:
    value = result.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadResult(f"{key} is not a list")
    return value


def _object(at: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadResult(f"{at} is not an object")
    return value


def _texts(at: str, value: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    told = {key: value[key] for key in keys if value.get(key) is not None}
    for key, text in told.items():
        if not isinstance(text, str):
            raise BadResult(f"{at}.{key} is not a string")
    return {key: text for key, text in told.items() if text}


def _numbers(at: str, value: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, int]:
    told = {key: value[key] for key in keys if value.get(key) is not None}
    for key, number in told.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise BadResult(f"{at}.{key} is not an integer")
    return told


def _interface(index: int, value: object, *, since_11: bool) -> Json:
    at = f"interfaces[{index}]"
    interface = _object(at, value)
    told: Json = dict(_texts(at, interface, _INTERFACE_TEXTS))
    if "name" not in told:
        raise BadResult(f"{at} has no name")
    if since_11:
        told |= _texts(at, interface, _INTERFACE_TEXTS_11) | _numbers(at, interface, ("mtu",))
    return told


def _ip(index: int, value: object, interfaces: int, *, before_10: bool) -> Json:
    at = f"ips[{index}]"
    ip = _object(at, value)
    address = ip.get("address")
    try:
        if not isinstance(address, str) or "/" not in address:
            raise ValueError
        parsed = ip_interface(address)
    except ValueError:
        raise BadResult(f"{at}.address {address!r} is not an address with a prefix length") from None
    told: Json = {"version": str(parsed.version)} if before_10 else {}
    number = _numbers(at, ip, ("interface",)).get("interface")
    # Some plugins write -1 where there is none.
    if number is not None and number >= 0:
        if number >= interfaces:
            raise BadResult(f"{at}.interface {number} is not the index of an interface")
        told["interface"] = number
    told["address"] = address
    return told | _addresses(at, ip, "gateway")


def _addresses(at: str, value: Mapping[str, Any], key: str) -> dict[str, str]:
    told = _texts(at, value, (key,))
    for text in told.values():
        _address(f"{at}.{key}", text)
    return told


def _address(at: str, text: object) -> str:
    try:
        ip_address(text if isinstance(text, str) else "")
    except ValueError:
        raise BadResult(f"{at} {text!r} is not an IP address") from None
    return str(text)


def _route(index: int, value: object, *, since_11: bool) -> Json:
    at = f"routes[{index}]"
    route = _object(at, value)
    destination = route.get("dst")
    try:
        ip_interface(destination if isinstance(destination, str) else "")
    except ValueError:
        raise BadResult(f"{at}.dst {destination!r} is not a range") from None
    told: Json = {"dst": destination, **_addresses(at, route, "gw")}
    return told | (_numbers(at, route, _ROUTE_NUMBERS_11) if since_11 else {})


def _dns(value: object) -> Json:
    if value is None:
        return {}
    dns = _object("dns", value)
    told: Json = {}
    for key in ("nameservers", "search", "options"):
        items = _list(dns, key)
        if not all(isinstance(item, str) for item in items):
            raise BadResult(f"dns.{key} holds what is no string")
        if items:
            told[key] = items
    for index, server in enumerate(told.get("nameservers", [])):
        _address(f"dns.nameservers[{index}]", server)
    return told | _texts("dns", dns, ("domain",))
