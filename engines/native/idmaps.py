"""Id mappings in the words of the OCI runtime specification: of a pod's user namespace, and of single mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import msgspec

from engines.base import IdMapping, Mount, NamespaceOptions, Namespaces, User
from forgeone_shim.binds import on_host
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
    uid = on_host("user", options.uid_mappings, who.uid)
    gids = [on_host("group", options.gid_mappings, gid) for gid in (who.gid, *who.additional_gids)]
    return uid, gids[0]


def exec_owner(config_json: bytes) -> tuple[int, int] | None:
    """As :func:`owner`, for another process of a container of this configuration."""
    if b'"uidMappings"' not in config_json:
        return None
    config = msgspec.json.decode(config_json)
    mappings, who = config["linux"], config["process"]["user"]
    if "uidMappings" not in mappings:
        return None
    uid = on_host("user", _read(mappings["uidMappings"]), who["uid"])
    return uid, on_host("group", _read(mappings["gidMappings"]), who["gid"])


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
