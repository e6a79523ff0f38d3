"""Reading a plugin's configuration so strictly that what is accepted is done exactly, and nothing else is accepted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha512
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from forgeone_shim.network.cni.plugin import VERSIONS, Json

IpAddress = IPv4Address | IPv6Address

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
LINK_NAME_MAX: Final = 15
CHAIN_NAME_MAX: Final = 28

ATTACHMENTS: Final = "cni.dev/valid-attachments"
# In every plugin's configuration, from the runtime or for it; what a plugin needs of them it reads when it is called.
_FOR_ALL: Final = ("type", "capabilities", "prevResult", ATTACHMENTS, "cni.dev/attachments")
_GO_INT: Final = 1 << 31


class Unsupported(Exception):
    """The configuration has something in it that is left to the plugin's program."""


class Fields:
    """A JSON object read key by key. ``null`` is as good as absent, as it is to the programs.

    :raises Unsupported: from every method, for a value that is not of the kind asked for.
    """

    def __init__(self, data: object) -> None:
        if not isinstance(data, Mapping):
            raise Unsupported
        self._left: dict[str, Any] = {key: value for key, value in data.items() if value is not None}

    def flag(self, key: str) -> bool:
        """True or false; absent is false."""
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            raise Unsupported(key)
        return value

    def maybe_flag(self, key: str) -> bool | None:
        """As :meth:`flag`, but absent is ``None``."""
        return self.flag(key) if key in self._left else None

    def number(self, key: str, low: int = 0, high: int = _GO_INT - 1) -> int:
        """A number between two, both inclusive; absent is 0."""
        value = self._left.pop(key, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Unsupported(key)
        return value

    def maybe_number(self, key: str, low: int, high: int) -> int | None:
        """As :meth:`number`, but absent is ``None``."""
        return self.number(key, low, high) if key in self._left else None

    def text(self, key: str) -> str:
        """A string; absent is empty."""
        value = self._left.pop(key, "")
        if not isinstance(value, str):
            raise Unsupported(key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.items(key)
        if not all(isinstance(item, str) for item in value):
            raise Unsupported(key)
        return tuple(value)

    def items(self, key: str) -> Sequence[Any]:
        """A list; absent is empty."""
        value = self._left.pop(key, ())
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise Unsupported(key)
        return value

    def child(self, key: str) -> Fields:
        """An object; absent is empty."""
        return Fields(self._left.pop(key, {}))

    def address(self, key: str) -> IpAddress | None:
        """An IP address; absent is ``None``."""
        value = self.text(key)
        return address(value) if value else None

    def ignore(self, *keys: str) -> None:
        """Take keys for read, whatever they say."""
        for key in keys:
            self._left.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def done(self) -> None:
        """Refuse what nobody has read: a program may know what it means."""
        if self._left:
            raise Unsupported(", ".join(self._left))


@dataclass(frozen=True, slots=True)
class Network:
    """What every plugin is told: the network's name, the version results are in, and the network's DNS."""

    name: str
    version: str
    dns: Json


def network(fields: Fields) -> Network:
    """Read what every configuration has."""
    name, version = fields.text("name"), fields.text("cniVersion")
    if not NAME.fullmatch(name) or version not in VERSIONS:
        raise Unsupported
    dns = fields.child("dns")
    told: Json = {
        "nameservers": list(dns.texts("nameservers")),
        "domain": dns.text("domain"),
        "search": list(dns.texts("search")),
        "options": list(dns.texts("options")),
    }
    dns.done()
    fields.ignore(*_FOR_ALL)
    return Network(name, version, {key: value for key, value in told.items() if value})


def address(value: str) -> IpAddress:
    """An IP address that every program writes the way it is written here."""
    try:
        parsed = ip_address(value)
    except ValueError as error:
        raise Unsupported(value) from error
    # The programs take an IPv4 address in IPv6 clothes for IPv4, and lose leading zero bytes when they count on.
    if isinstance(parsed, IPv6Address) and (parsed.scope_id or parsed.ipv4_mapped is not None):
        raise Unsupported(value)
    return parsed


def link_name(value: str) -> str:
    """The name of a network interface."""
    if not value or len(value) > LINK_NAME_MAX or value in (".", "..") or any(c in "/:" or c.isspace() for c in value):
        raise Unsupported(value)
    if not value.isascii() or not value.isprintable():
        raise Unsupported(value)
    return value


def mac(value: str) -> str:
    """A MAC address in lower case; empty stays empty."""
    if not value:
        return ""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise Unsupported(value)
    return value.lower()


def hashed_name(length: int, prefix: str, *parts: str) -> str:
    """The name that all programs of this family give to what belongs to one network and container."""
    return (prefix + sha512("".join(parts).encode()).hexdigest())[:length]


def chain_name(prefix: str, network_name: str, container_id: str) -> str:
    """The iptables chain of one container in one network."""
    return hashed_name(CHAIN_NAME_MAX, f"CNI-{prefix}", network_name, container_id)
