"""Device nodes of a container and the rules that let it use them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.base import Device
from forgeone_shim.errors import InvalidInput

# Nodes that crun makes in every container, or that belong to a mount of its own.
_OWN = "console fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero core .lxc .udev lxc"
_NOT_COPIED = frozenset(_OWN.split())

_CHAR, _BLOCK = "c", "b"


@dataclass(frozen=True, slots=True)
class Node:
    """A device node to make in a container, with what may be done to it."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    permissions: str = "rwm"


def _node(source: str, destination: str, permissions: str) -> Node | None:
    found = Path(source).stat()
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return None
    return Node(
        path=destination,
        kind=_CHAR if stat.S_ISCHR(found.st_mode) else _BLOCK,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        permissions=permissions,
    )


def read(devices: Iterable[Device]) -> tuple[Node, ...]:
    """The nodes behind the devices asked for; a directory stands for all the nodes below it."""
    nodes: list[Node] = []
    for device in devices:
        if not device.source.startswith("/") or not device.permissions or set(device.permissions) - set("rwm"):
            raise InvalidInput("devices", f"{device.source!r} {device.permissions!r}: want a path and some of rwm")
        destination = device.destination or device.source
        try:
            source = os.path.realpath(device.source, strict=True)
            if Path(source).is_dir():
                nodes += _below(source, destination, device.permissions, frozenset())
                continue
            node = _node(source, destination, device.permissions)
        except OSError as error:
            raise InvalidInput("devices", f"{device.source}: {error.strerror}") from error
        if node is None:
            raise InvalidInput("devices", f"{device.source} is not a device")
        nodes.append(node)
    return tuple(nodes)


def all_of_host() -> tuple[Node, ...]:
    """Every device below /dev, for a privileged container."""
    return tuple(_below("/dev", "/dev", "rwm", _NOT_COPIED))


def _below(source: str, destination: str, permissions: str, skip: frozenset[str]) -> list[Node]:
    found: list[Node] = []
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except PermissionError:
        return found
    for entry in entries:
        if entry.name in skip or entry.is_symlink():
            continue
        target = f"{destination}/{entry.name}"
        # A device that goes away while it is listed is one the host has no more.
        try:
            if entry.is_dir(follow_symlinks=False):
                found += _below(entry.path, target, permissions, skip)
            elif (node := _node(entry.path, target, permissions)) is not None:
                found.append(node)
        except FileNotFoundError:
            continue
    return found


def spec(nodes: Iterable[Node]) -> list[dict[str, object]]:
    """OCI ``linux.devices``; of two at one path the last counts."""
    unique = {node.path: node for node in nodes}
    return [
        {
            "path": node.path,
            "type": node.kind,
            "major": node.major,
            "minor": node.minor,
            "fileMode": node.mode,
            "uid": node.uid,
            "gid": node.gid,
        }
        for node in unique.values()
    ]


def rules(nodes: Iterable[Node], *, privileged: bool) -> list[dict[str, object]]:
    """OCI ``linux.resources.devices``: everything for a privileged container, else only what was asked for.

    crun itself adds what no container can do without (null, zero, full, tty, random, urandom, console, ptys).
    """
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    found: list[dict[str, object]] = [{"allow": False, "access": "rwm"}]
    found += [
        {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.permissions}
        for node in nodes
    ]
    return found
