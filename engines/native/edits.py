"""What a container's devices change in its ``config.json``, after everything else was put there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.base import Edits, MountEdit, NodeEdit, RdtEdit
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented

Json = dict[str, Any]
_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
# The oldest crun that heeds a part of the configuration; an older one says nothing and leaves it out.
# mount(8), as crun takes them.
_PROPAGATIONS = {f"{deep}{kind}" for deep in ("", "r") for kind in ("private", "slave", "shared", "unbindable")}
_RDT, _RDT_SCHEMATA, _NET_DEVICES = (1, 10), (1, 22), (1, 22)


@dataclass(frozen=True, slots=True)
class Needed:
    """A version of crun, and for what."""

    version: tuple[int, ...]
    what: str


def needed(edits: Edits) -> Needed | None:
    """The crun that these edits ask for; ``None`` where any will do."""
    found: list[Needed] = []
    if edits.net_devices:
        found.append(Needed(_NET_DEVICES, "moving network interfaces into a pod"))
    if edits.rdt is not None and rdt_class(edits.rdt) is None:
        what = "making a resctrl class"
        found.append(Needed(_RDT_SCHEMATA if edits.rdt.schemata else _RDT, what))
    return max(found, key=lambda one: one.version, default=None)


def rdt_class(rdt: RdtEdit) -> str | None:
    """The class that is only to be entered, empty for the host's own; ``None`` where crun is to make one.

    :raises Unimplemented: what crun makes would be its own to remove, and it is not asked to delete containers.
    """
    if not (rdt.l3_cache_schema or rdt.mem_bw_schema or rdt.schemata or rdt.monitoring):
        return rdt.clos_id.strip("/")
    if rdt.monitoring or rdt.clos_id in ("", "/"):
        raise Unimplemented("a CDI device asks for a resctrl class without a name, or monitored: not supported")
    return None


def nodes(edits: Edits) -> tuple[NodeEdit, ...]:
    """The device nodes, with what was not given read from the host's own.

    :raises FailedPrecondition: the host has no such device, or another kind of one.
    """
    return tuple(_filled(node) for node in edits.nodes)


def _filled(node: NodeEdit) -> NodeEdit:
    complete = node.kind == "p" or (node.kind and node.major is not None)
    try:
        found = Path(node.host_path).stat()
    except OSError as error:
        if complete:
            return node
        raise FailedPrecondition(f"CDI device node {node.host_path}: {error.strerror}") from error
    mode = stat.S_IMODE(found.st_mode) if node.mode is None else node.mode
    if complete:
        return replace(node, mode=mode)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "")
    if not kind or (node.kind and node.kind != kind):
        what = f"a device of kind {node.kind}" if node.kind else "a device"
        raise FailedPrecondition(f"CDI device node {node.host_path} is not {what}")
    if kind == "p" or node.major is not None:
        return replace(node, kind=kind, mode=mode)
    return replace(node, kind=kind, mode=mode, major=os.major(found.st_rdev), minor=os.minor(found.st_rdev))


def apply(whole: Json, edits: Edits, filled: Sequence[NodeEdit]) -> None:
    """Make the edits, all but hooks; ``filled`` is what :func:`nodes` found. Of two at one place the edit counts."""
    _environment(whole["process"], edits.env)
    _groups(whole["process"]["user"], edits.additional_gids)
    _nodes(whole, filled)
    if edits.mounts:
        _mounts(whole, edits.mounts)
    linux = whole["linux"]
    if edits.rdt is not None and rdt_class(edits.rdt) is None:
        rdt = {
            "closID": edits.rdt.clos_id,
            "l3CacheSchema": edits.rdt.l3_cache_schema,
            "memBwSchema": edits.rdt.mem_bw_schema,
            "schemata": list(edits.rdt.schemata),
        }
        linux["intelRdt"] = {key: value for key, value in rdt.items() if value}
    if edits.net_devices:
        if not any(one["type"] == "network" for one in linux["namespaces"]):
            raise InvalidInput("config.CDI_devices", "move network interfaces, but the pod uses the host's network")
        linux["netDevices"] = {device.host_name: {"name": device.name} for device in edits.net_devices}


def _environment(process: Json, variables: Sequence[str]) -> None:
    if variables:
        found = {entry.partition("=")[0]: entry for entry in process["env"]}
        found |= {entry.partition("=")[0]: entry for entry in variables}
        process["env"] = list(found.values())


def _groups(user: Json, gids: Sequence[int]) -> None:
    if gids:
        user["additionalGids"] = list(dict.fromkeys([*user.get("additionalGids", []), *gids]))


def _nodes(whole: Json, filled: Sequence[NodeEdit]) -> None:
    linux, user = whole["linux"], whole["process"]["user"]
    for node in filled:
        device: Json = {
            "path": node.path,
            "type": node.kind,
            "uid": user["uid"] if node.uid is None else node.uid,
            "gid": user["gid"] if node.gid is None else node.gid,
        }
        if node.mode is not None:
            device["fileMode"] = node.mode
        if node.kind != "p":
            numbers = {"major": node.major, "minor": node.minor}
            device |= numbers
            if node.permissions:
                rule = {"allow": True, "type": node.kind, **numbers, "access": node.permissions}
                linux["resources"]["devices"].append(rule)
        linux["devices"] = [one for one in linux["devices"] if one["path"] != node.path] + [device]


def _mounts(whole: Json, added: Sequence[MountEdit]) -> None:
    # In a user namespace the owners of what is bound would be strangers, and files of theirs perhaps not readable. What
    # can be written keeps them, but where the vendor says otherwise: the pod's root would write as the host's.
    mapped = any(one["type"] == "user" for one in whole["linux"]["namespaces"])
    listed: list[Json] = whole["mounts"]
    for mount in added:
        if mount.source.startswith("/") and not Path(mount.source).exists():
            raise FailedPrecondition(f"CDI mount {mount.source}: {os.strerror(errno.ENOENT)}")
        listed = [one for one in listed if one["destination"] != mount.destination]
        entry: Json = {"destination": mount.destination, "source": mount.source}
        entry["type"] = mount.kind or "none"
        entry["options"] = _apart(mount, _with_mapping(mount)) if mapped else list(mount.options)
        listed.append(entry)
    # Fewer parts first, so that no mount hides one below it.
    whole["mounts"] = sorted(listed, key=lambda one: os.path.normpath(one["destination"]).count("/"))


def _with_mapping(mount: MountEdit) -> list[str]:
    options = list(mount.options)
    if "idmap" in options or "ridmap" in options or not {"ro", "rro"} & set(options):
        return options
    if "rbind" in options:
        return [*options, "ridmap"]
    return [*options, "idmap"] if "bind" in options or mount.kind == "bind" else options


def _apart(mount: MountEdit, options: list[str]) -> list[str]:
    """Private unless the vendor says otherwise, as without a user namespace: with one crun binds a peer of the host's
    mount, and what the pod's root mounts below would be mounted on the host too."""
    bound = mount.kind == "bind" or {"bind", "rbind"} & set(options)
    return [*options, "rprivate"] if bound and not _PROPAGATIONS & set(options) else options
