"""Settings that are short texts: a limit, a device, a mount, a variable, a kernel parameter.

The configuration refuses what cannot be used, and whoever uses it reads it by the same function.
"""

from __future__ import annotations

import posixpath
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import InvalidInput

_LIMITS: Final = {
    "as": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": getattr(resource, "RLIMIT_RTTIME", 15),
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
UNLIMITED: Final = 2**64 - 1
"""RLIM_INFINITY, as the OCI runtime spec has it."""


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of a process (setrlimit(2)); ``number`` is its RLIMIT_*."""

    name: str
    number: int
    soft: int
    hard: int

    @property
    def kind(self) -> str:
        """The name in the OCI runtime spec."""
        return f"RLIMIT_{self.name.upper()}"


def ulimit(field: str, text: str) -> Ulimit:
    """``nofile=1024:2048`` (soft and hard) or ``nofile=1024`` (both); -1 is no limit."""
    name, equals, values = text.partition("=")
    if name not in _LIMITS or not equals:
        raise InvalidInput(field, f"{text!r} is not NAME=SOFT:HARD", fix=f"names: {', '.join(_LIMITS)}")
    soft_text, colon, hard_text = values.partition(":")
    soft = _limit(field, text, soft_text)
    hard = _limit(field, text, hard_text) if colon else soft
    if soft > hard:
        raise InvalidInput(field, f"{text!r}: the soft limit is above the hard one")
    return Ulimit(name, _LIMITS[name], soft, hard)


def _limit(field: str, whole: str, text: str) -> int:
    if text == "-1":
        return UNLIMITED
    if not (text.isascii() and text.isdigit() and int(text) < UNLIMITED):
        raise InvalidInput(field, f"{whole!r}: {text!r} is not a number, nor -1 for none")
    return int(text)


@dataclass(frozen=True, slots=True)
class Device:
    """A device node on the host, where it is to be in a container, and some of r, w and m."""

    source: str
    destination: str
    permissions: str


def device(field: str, text: str) -> Device:
    """``/dev/fuse``, ``/dev/fuse:rwm``, ``/dev/sdc:/dev/xvdc`` or ``/dev/sdc:/dev/xvdc:rwm``."""
    source, *rest = text.split(":")
    permissions = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    destination = rest.pop() if rest else source
    if rest or not permissions or len(set(permissions) & set("rwm")) != len(permissions):
        raise InvalidInput(field, f"{text!r} is not a device such as /dev/fuse or /dev/sdc:/dev/xvdc:rwm")
    return Device(_path(field, source), _path(field, destination), permissions)


@dataclass(frozen=True, slots=True)
class Mount:
    """A path on the host, where it is to be in a container, and whether nothing can be written there."""

    source: str
    destination: str
    readonly: bool


def mount(field: str, text: str) -> Mount:
    """``/on/the/host:/in/the/container``, and ``:ro`` after it for one that cannot be written to."""
    source, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or rest[1:] not in ([], ["ro"], ["rw"]):
        raise InvalidInput(field, f"{text!r} is not a mount such as /srv/data:/data:ro")
    destination = _path(field, rest[0])
    if destination == "/":
        raise InvalidInput(field, f"{text!r} would hide the container's own root")
    return Mount(_path(field, source), destination, readonly=rest[1:] == ["ro"])


def variable(field: str, text: str) -> str:
    """``NAME=value``."""
    if text.find("=") <= 0 or "\0" in text:
        raise InvalidInput(field, f"{text!r} is not NAME=value")
    return text


def parameters(field: str, texts: Sequence[str]) -> dict[str, str]:
    """``net.ipv4.ip_unprivileged_port_start=0``: kernel parameters of pods by name, each given once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or name != name.strip():
            raise InvalidInput(field, f"{text!r} is not NAME=value")
        if name in found:
            raise InvalidInput(field, f"{name} is there twice")
        if parameter_owner(parameter_parts(name)) is None:
            raise InvalidInput(field, f"{name} is not a parameter that a pod has of its own")
        found[name] = value
    return found


def parameter_parts(key: str) -> list[str]:
    """The parts of a kernel parameter's name, written with dots or slashes (sysctl.d(5))."""
    dot, slash = key.find("."), key.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        return key.split("/")
    return [part.replace("/", ".") for part in key.split(".")]


def parameter_owner(parts: Sequence[str]) -> str | None:
    """The kind of namespace (``net``, ``ipc``) that a parameter belongs to; ``None``: to the whole host."""
    match parts:
        case ["net", _, *_]:
            return "net"
        case ["kernel", name] if name == "sem" or name.startswith(("shm", "msg")):
            return "ipc"
        case ["fs", "mqueue", _]:
            return "ipc"
        case _:
            return None


def _path(field: str, text: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise InvalidInput(field, f"{text!r} is not an absolute path without '..'")
    return "/" + posixpath.normpath(text).lstrip("/")
