"""Id mappings in the words of the OCI runtime specification: of a pod's user namespace, and of single mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from engines.base import IdMapping, Mount, NamespaceOptions, Namespaces, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.procs import Pidfd

Json = dict[str, Any]

# Before 1.24 crun gives its own standard streams to the namespace's root, the host's /dev/null among them, which that
# root could then chmod(2) for everybody. It takes the first mapping of id 0 for that root's, and where that is the
# host's own, gives nothing away. An extent of no length does just that: wherever ids are looked up, nothing is in it.
_GIVES_NOTHING_AWAY = {"containerID": 0, "hostID": 0, "size": 0}


def _extents(mappings: Sequence[IdMapping]) -> list[dict[str, int]]:
    return [{"containerID": one.container_id, "hostID": one.host_id, "size": one.length} for one in mappings]


def of_pod(paths: Namespaces, options: NamespaceOptions) -> Json:
    """What ``linux`` has in a pod with a user namespace; crun goes by it even where the namespace is there already."""
    if paths.user is None:
        return {}
    return {
        "uidMappings": [_GIVES_NOTHING_AWAY, *_extents(options.uid_mappings)],
        "gidMappings": [_GIVES_NOTHING_AWAY, *_extents(options.gid_mappings)],
    }


def of_mount(mount: Mount) -> Json:
    """What a mount with owners of its own has.

    Where they are the pod's, it is written otherwise than there, so that crun makes a namespace for it: it would take
    that of the container's process, which may not have joined the pod's yet.
    """
    if not mount.uid_mappings:
        return {}
    return {"uidMappings": _extents(mount.uid_mappings), "gidMappings": _extents(mount.gid_mappings)}


def owner(who: User, paths: Namespaces, options: NamespaceOptions) -> tuple[int, int] | None:
    """User and group on the host of a process in a pod with a user namespace; ``None`` in any other.

    :raises InvalidInput: the user, or one of the groups, is none of the pod's.
    """
    if paths.user is None:
        return None
    uid = _outside("user", options.uid_mappings, who.uid)
    gids = [_outside("group", options.gid_mappings, gid) for gid in (who.gid, *who.additional_gids)]
    return uid, gids[0]


def _outside(noun: str, mappings: Sequence[IdMapping], number: int) -> int:
    for one in mappings:
        if one.container_id <= number < one.container_id + one.length:
            return one.host_id + number - one.container_id
    raise InvalidInput(noun, f"{noun} {number} is not mapped in the pod's user namespace")


def exec_owner(config_json: bytes) -> tuple[int, int] | None:
    """As :func:`owner`, for another process of a container of this configuration."""
    if b'"uidMappings"' not in config_json:
        return None
    config = msgspec.json.decode(config_json)
    mappings, who = config["linux"], config["process"]["user"]
    if "uidMappings" not in mappings:
        return None
    uid = _outside("user", _read(mappings["uidMappings"]), who["uid"])
    return uid, _outside("group", _read(mappings["gidMappings"]), who["gid"])


def _read(listed: Sequence[dict[str, int]]) -> list[IdMapping]:
    return [IdMapping(one["hostID"], one["containerID"], one["size"]) for one in listed]


def give_pipes(held: Pidfd, who: tuple[int, int]) -> None:
    """Let a process open its own standard output and error by name (``/dev/stderr``), as their owner may.

    A terminal is the container's already. OSError says that the kernel refuses.
    """
    for number in (1, 2):
        fd = os.open(f"/proc/{held.pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        try:
            # Alive after the open, so that what was opened is its own.
            if not held.wait(0) and stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.chown(f"/proc/self/fd/{fd}", *who)
        finally:
            os.close(fd)


def check(mount: Mount) -> None:
    """Whether a mount has both mappings or neither; InvalidInput says what is missing."""
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        missing = "gidMappings" if mount.uid_mappings else "uidMappings"
        raise InvalidInput(f"mounts.{missing}", f"{mount.destination}: is missing where its twin is given")


def with_submounts(mounts: Sequence[Mount], mount_points: Sequence[str]) -> Iterator[Mount]:
    """The mounts, each id-mapped one followed by what is mounted below its source (a resolved path).

    crun takes an id-mapped mount without those. They come as they are, with the owners they have on the host: only what
    was asked for is given to the pod's root.
    """
    for mount in mounts:
        yield mount
        if not mount.uid_mappings:
            continue
        root = mount.source.rstrip("/") + "/"
        below = sorted({point for point in mount_points if point.startswith(root)})
        tops: list[str] = []
        for point in below:
            if not any(point.startswith(top + "/") for top in tops):
                tops.append(point)
                destination = f"{mount.destination.rstrip('/')}/{point[len(root) :]}"
                yield replace(
                    mount,
                    destination=destination,
                    source=point,
                    readonly=mount.recursive_read_only,
                    uid_mappings=(),
                    gid_mappings=(),
                )
