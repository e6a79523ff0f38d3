"""What a configuration value may be. Each check raises InvalidInput naming the key; none returns anything."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Sequence

from forgeone_shim.errors import InvalidInput

# IFNAMSIZ is 16 with the terminating NUL (linux/if.h).
_INTERFACE_MAX = 15
# What is left of an interface name after the prefix must tell pods apart.
_INTERFACE_UNIQUE = 8
# sun_path holds 108 bytes with the NUL (unix(7)); the socket is first bound as PATH.<pid> and renamed, a pid has at
# most seven digits.
_SOCKET_MAX = 107 - len(".4194304")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_PREFIX = re.compile(r"[a-z][a-z0-9]*")
# RFC 1123, as names of Kubernetes objects.
POLICY_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_CAPABILITY = re.compile(r"(?i:CAP_)?[A-Za-z_]+")
_ENDPOINT = re.compile(r"(?:(?P<four>[0-9.]+)|\[(?P<six>[0-9a-fA-F:.]+)\]):(?P<port>[0-9]{1,5})")
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?")


def in_range(key: str, value: float, low: float, high: float) -> None:
    """``low <= value <= high``; NaN is outside."""
    if not low <= value <= high:
        raise InvalidInput(key, f"{value} is outside {low:g}..{high:g}" if high < 1e6 else f"{value} is below {low:g}")


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """A member of an enumeration."""
    if value not in allowed:
        raise InvalidInput(key, f"{value!r} is not one of {', '.join(allowed)}")


def absolute_path(key: str, value: str) -> None:
    """An absolute path in its normal form: no ``..``, no doubled slashes, no NUL, not the root directory."""
    if "\0" in value or not value.startswith("/"):
        raise InvalidInput(key, f"{value!r} is not an absolute path")
    # posixpath keeps two leading slashes, which POSIX leaves to the implementation.
    if value.startswith("//") or posixpath.normpath(value) != value.rstrip("/"):
        raise InvalidInput(
            key, f"{value!r} must have no '.', '..' or empty parts", fix=f"{posixpath.normpath(value)!r}"
        )


def apart(key: str, value: str, other_key: str, other: str) -> None:
    """Two directories of which neither holds the other."""
    if posixpath.commonpath((value, other)) in {value.rstrip("/"), other.rstrip("/")}:
        raise InvalidInput(key, f"{value!r} and {other_key} {other!r} must not be the same or hold one another")


def socket_path(key: str, value: str) -> None:
    """An absolute path short enough for a unix socket and its temporary name."""
    absolute_path(key, value)
    if len(value.encode()) > _SOCKET_MAX:
        raise InvalidInput(key, f"{value!r} is longer than the {_SOCKET_MAX} bytes a unix socket's path may have here")


def interface_name(key: str, value: str) -> None:
    """A network interface's name."""
    if not _NAME.fullmatch(value) or len(value) > _INTERFACE_MAX:
        raise InvalidInput(key, f"{value!r} is not an interface name of at most {_INTERFACE_MAX} letters and digits")


def interface_prefix(key: str, value: str) -> None:
    """A prefix that leaves room in an interface's name for what tells pods apart."""
    longest = _INTERFACE_MAX - _INTERFACE_UNIQUE
    if not _PREFIX.fullmatch(value) or len(value) > longest:
        raise InvalidInput(key, f"{value!r} is not 1..{longest} lower-case letters and digits, a letter first")


def identifier(key: str, value: str) -> None:
    """A name nftables takes as it is."""
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidInput(key, f"{value!r} is not a name of letters, digits and underscores")


def subnet(key: str, value: str, *, version: int) -> None:
    """A range in CIDR form with no host bits set, large enough for a gateway and a pod."""
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise InvalidInput(key, f"{value!r} is not a range in CIDR form: {error}") from None
    if network.version != version:
        raise InvalidInput(key, f"{value!r} is not an IPv{version} range")
    if network.max_prefixlen - network.prefixlen < 2:
        raise InvalidInput(key, f"{value!r} has no room for a gateway and a pod")


def ip_address(key: str, value: str) -> None:
    """An IPv4 or IPv6 address, not a name."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise InvalidInput(key, f"{value!r} is not an IP address") from None


def endpoint(key: str, value: str) -> None:
    """``ADDRESS:PORT``, the address an IPv4 one or an IPv6 one in brackets; port 0 is any free one."""
    split_endpoint(key, value)


def split_endpoint(key: str, value: str) -> tuple[str, int]:
    """The address and the port of an :func:`endpoint`."""
    found = _ENDPOINT.fullmatch(value)
    if found is None or int(found["port"]) > 65535:
        raise InvalidInput(key, f"{value!r} is not ADDRESS:PORT", fix="for example '0.0.0.0:9580' or '[::]:9580'")
    address = found["four"] or found["six"]
    ip_address(key, address)
    if (":" in address) is not (found["six"] is not None):
        raise InvalidInput(key, f"{value!r} has an IPv6 address without brackets, or brackets around another one")
    return address, int(found["port"])


def platform(key: str, value: str) -> None:
    """``os/architecture[/variant]``, or empty for the host's own."""
    if value and not _PLATFORM.fullmatch(value):
        raise InvalidInput(key, f"{value!r} is not os/architecture[/variant]", fix="for example 'linux/arm64/v8'")


def program(key: str, value: str) -> None:
    """A program's absolute path, or a bare name for PATH."""
    if value.startswith("/"):
        absolute_path(key, value)
    elif not value or "/" in value or "\0" in value or value in {".", ".."}:
        raise InvalidInput(key, f"{value!r} is neither an absolute path nor a program's name")


def directories(key: str, values: Sequence[str]) -> None:
    """Absolute paths, none of them twice."""
    for value in values:
        absolute_path(key, value)
    if len(set(values)) != len(values):
        raise InvalidInput(key, "has a directory twice")


def each(key: str, values: Sequence[str], check: Callable[[str, str], object]) -> None:
    """``check`` for every member of a list."""
    for value in values:
        check(key, value)


def capability(key: str, value: str) -> None:
    """The form of a Linux capability's name, with or without CAP_; which ones there are the engine knows."""
    if not _CAPABILITY.fullmatch(value):
        raise InvalidInput(key, f"{value!r} is not the name of a capability")


def no_blanks(key: str, values: Sequence[str]) -> None:
    """A list without empty members."""
    if any(not value.strip() for value in values):
        raise InvalidInput(key, "has an empty member")


def host_name(key: str, value: str) -> None:
    """A name as hosts have it, and Kubernetes' nodes (RFC 1123)."""
    if len(value) > 253 or not _HOST.fullmatch(value):
        raise InvalidInput(key, f"{value!r} is not 1..253 lower-case letters, digits, '-' and '.'")


def policy_name(key: str, value: str) -> None:
    """A policy's ``metadata.name``."""
    if not POLICY_NAME.fullmatch(value):
        raise InvalidInput(
            key, f"{value!r} is not 1..63 lower-case letters, digits, '-' and '.', as policies are named"
        )
