"""Checks on single fields of a CRI message. Each raises InvalidInput with the field's path in the request."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from forgeone_shim.errors import InvalidInput

T = TypeVar("T")
K = TypeVar("K", bound=int)

# Control characters would break log lines, /etc/hosts and cgroup files alike; no name or path needs one.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def given(path: str, value: str) -> str:
    """A text that may not be empty."""
    if not value:
        raise InvalidInput(path, "is empty")
    return plain(path, value)


def plain(path: str, value: str) -> str:
    """A text without control characters."""
    if _CONTROL.search(value):
        raise InvalidInput(path, "holds a control character")
    return value


def no_nul(path: str, value: str) -> str:
    """A text that can be handed to the kernel, which ends strings with NUL."""
    if "\0" in value:
        raise InvalidInput(path, "holds a NUL character")
    return value


def name(path: str, value: str) -> str:
    """One part of an identity such as ``namespace/name/uid/attempt``."""
    if "/" in given(path, value):
        raise InvalidInput(path, f"{value!r} holds a '/'")
    return value


def matching(path: str, value: str, pattern: re.Pattern[str], what: str) -> str:
    """A text of the form ``pattern``, which ``what`` describes to a reader."""
    if not pattern.fullmatch(value):
        raise InvalidInput(path, f"{value!r} is not {what}")
    return value


def absolute(path: str, value: str) -> str:
    """An absolute path in normal form, without ``..``."""
    if not plain(path, value).startswith("/"):
        raise InvalidInput(path, f"{value!r} is not an absolute path")
    if ".." in value.split("/"):
        raise InvalidInput(path, f"{value!r} must not hold '..'")
    # posixpath keeps two leading slashes, which POSIX leaves to the implementation.
    return "/" + posixpath.normpath(value).lstrip("/")


def inside(path: str, value: str) -> str:
    """A relative path in normal form that stays below where it begins."""
    plain(path, value)
    if value.startswith("/") or ".." in value.split("/"):
        raise InvalidInput(path, f"{value!r} must be relative and must not hold '..'")
    normal = posixpath.normpath(value)
    if normal == ".":
        raise InvalidInput(path, f"{value!r} names no file")
    return normal


def member(path: str, value: K, members: Mapping[K, T]) -> T:
    """The meaning of an enum's number; proto3 lets any number through."""
    found = members.get(value)
    if found is None:
        raise InvalidInput(path, f"{value} is not a value allowed here")
    return found


def between(path: str, value: int, low: int, high: int) -> int:
    """``low <= value <= high``."""
    if not low <= value <= high:
        raise InvalidInput(path, f"{value} is not in {low}..{high}")
    return value


def at_least(path: str, value: int, low: int = 0) -> int:
    """``value >= low``."""
    if value < low:
        raise InvalidInput(path, f"{value} is below {low}")
    return value


def address(path: str, value: str) -> str:
    """An IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise InvalidInput(path, f"{value!r} is not an IP address") from None
    return value


def each(path: str, values: Iterable[str], check: Callable[[str, str], str]) -> tuple[str, ...]:
    """``check`` for every element, its index in the path."""
    return tuple([check(f"{path}[{index}]", value) for index, value in enumerate(values)])
