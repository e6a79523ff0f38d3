"""CDI files: what a vendor says a container needs for each of its devices. Pure.

https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md, versions 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engines.base import NO_EDITS, Edits, Hook, HookStage, MountEdit, NetDeviceEdit, NodeEdit, RdtEdit
from forgeone_shim.devices import names
from forgeone_shim.dropins.table import Table
from forgeone_shim.errors import InvalidInput

VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_STAGES = {stage.value: stage for stage in HookStage}
# IFNAMSIZ (linux/if.h), and what dev_valid_name() refuses.
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[^/:\s\0]{1,15}")
_CLOS = re.compile(r"/|(?!\.{1,2}\Z)[^/\n]{1,255}")
_NODE_KINDS = ("", "b", "c", "u", "p")
# Seconds; a hook that may take longer than a day is one that may take for ever.
_TIMEOUT_MAX = 86400


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A vendor's devices of one kind (``vendor/class``), by name; ``edits`` are made once if any of them is used."""

    kind: str
    edits: Edits
    devices: Mapping[str, Edits]


class _Needs:
    """The newest version that something in the file needs, and what that is."""

    def __init__(self, where: str) -> None:
        self._where, self._least, self._what = where, 0, ""

    def note(self, version: str, what: str) -> None:
        if VERSIONS.index(version) > self._least:
            self._least, self._what = VERSIONS.index(version), what

    def check(self, version: str) -> None:
        if VERSIONS.index(version) < self._least:
            raise InvalidInput(f"{self._where}.cdiVersion", f"is {version}; {self._what} needs {VERSIONS[self._least]}")


def device_file(where: str, document: object) -> DeviceFile:
    """A file's content as devices; ``where`` names the file in errors.

    :raises InvalidInput: the first field that cannot be used.
    """
    needs = _Needs(where)
    with Table(where, document) as table:
        version = table.text("cdiVersion", required=True).removeprefix("v")
        if version not in VERSIONS:
            raise table.wrong("cdiVersion", f"{version!r} is not one of {', '.join(VERSIONS)}")
        kind = table.text("kind", required=True)
        if not names.KIND.fullmatch(kind):
            raise table.wrong("kind", f"{kind!r} is not vendor/class")
        if "." in kind.partition("/")[2]:
            needs.note("0.6.0", "a dot in the class")
        _annotations(table, needs)
        edits = table.table("containerEdits", lambda one: _edits(one, needs)) or NO_EDITS
        devices: dict[str, Edits] = {}
        for name, found in table.tables("devices", lambda one: _device(one, needs)):
            if name in devices:
                raise table.wrong("devices", f"{name!r} is there twice")
            devices[name] = found
        if not devices:
            raise table.wrong("devices", "is empty")
    needs.check(version)
    return DeviceFile(kind, edits, devices)


def _annotations(table: Table, needs: _Needs) -> None:
    if table.labels("annotations"):
        needs.note("0.6.0", "annotations")


def _device(table: Table, needs: _Needs) -> tuple[str, Edits]:
    name = table.text("name", required=True)
    if not names.DEVICE.fullmatch(name):
        raise table.wrong("name", f"{name!r} does not name a device")
    if name[0].isdigit():
        needs.note("0.5.0", "a device name that begins with a digit")
    _annotations(table, needs)
    edits = table.table("containerEdits", lambda one: _edits(one, needs)) or NO_EDITS
    if edits == NO_EDITS:
        raise table.wrong("containerEdits", "has nothing in it")
    return name, edits


def _edits(table: Table, needs: _Needs) -> Edits:
    gids = table.numbers("additionalGids")
    if gids:
        needs.note("0.7.0", "additionalGids")
    found = Edits(
        env=table.variables("env"),
        nodes=table.tables("deviceNodes", lambda one: _node(one, needs)),
        mounts=table.tables("mounts", lambda one: _mount(one, needs)),
        hooks=table.tables("hooks", _hook),
        additional_gids=tuple(gid for gid in gids if gid),
        rdt=table.table("intelRdt", lambda one: _rdt(one, needs)),
        net_devices=table.tables("netDevices", _net_device),
    )
    if found.net_devices:
        needs.note("1.1.0", "netDevices")
        unique_interfaces(f"{table.where}.netDevices", found.net_devices)
    return found


def unique_interfaces(field: str, devices: tuple[NetDeviceEdit, ...]) -> None:
    """No interface twice, and no two with one name; InvalidInput names ``field``."""
    for listed in ([one.host_name for one in devices], [one.name for one in devices]):
        if len(set(listed)) != len(listed):
            raise InvalidInput(field, f"an interface is there twice: {', '.join(listed)}")


def _node(table: Table, needs: _Needs) -> NodeEdit:
    path, host_path = table.path("path", required=True), table.path("hostPath")
    if host_path:
        needs.note("0.5.0", "hostPath of a device node")
    kind = table.text("type")
    if kind not in _NODE_KINDS:
        raise table.wrong("type", f"{kind!r} is not b, c, u or p")
    permissions = table.text("permissions")
    if permissions != "none" and (set(permissions) - set("rwm")):
        raise table.wrong("permissions", f"{permissions!r} is neither some of r, w and m nor none")
    # A number that is 0 counts as not given, and the minor only beside a major.
    major, minor = table.number("major") or None, table.number("minor") or 0
    return NodeEdit(
        path=path,
        host_path=host_path or path,
        kind="c" if kind == "u" else kind,
        major=major,
        minor=None if major is None else minor,
        mode=table.number("fileMode", high=0o7777),
        uid=table.number("uid"),
        gid=table.number("gid"),
        permissions="" if permissions == "none" else permissions or "rwm",
    )


def _mount(table: Table, needs: _Needs) -> MountEdit:
    kind, options = table.text("type"), table.texts("options")
    if kind:
        needs.note("0.4.0", "type of a mount")
    source, destination = table.text("hostPath", required=True), table.path("containerPath", required=True)
    bind = kind in ("", "none", "bind") or "bind" in options or "rbind" in options
    if bind and not source.startswith("/"):
        raise table.wrong("hostPath", f"{source!r} is not an absolute path")
    return MountEdit(destination, source, kind, options)


def _hook(table: Table) -> Hook:
    stage = table.text("hookName", required=True)
    if stage not in _STAGES:
        raise table.wrong("hookName", f"{stage!r} is not one of {', '.join(_STAGES)}")
    path = table.path("path", required=True)
    return Hook(
        stage=_STAGES[stage],
        path=path,
        args=table.texts("args") or (path,),
        env=table.variables("env"),
        timeout=table.number("timeout", 1, _TIMEOUT_MAX) or 0,
    )


def _rdt(table: Table, needs: _Needs) -> RdtEdit:
    needs.note("0.7.0", "intelRdt")
    if table.given & {"schemata", "enableMonitoring"}:
        needs.note("1.1.0", "schemata or enableMonitoring")
    clos = table.text("closID")
    if clos and not _CLOS.fullmatch(clos):
        raise table.wrong("closID", f"{clos!r} cannot name a resctrl group")
    # Both were one in 1.1.0, under the third name.
    monitoring = [table.truth(key) for key in ("enableMonitoring", "enableCMT", "enableMBM")]
    return RdtEdit(
        clos_id=clos,
        l3_cache_schema=table.text("l3CacheSchema"),
        mem_bw_schema=table.text("memBwSchema"),
        schemata=table.texts("schemata"),
        monitoring=any(monitoring),
    )


def _net_device(table: Table) -> NetDeviceEdit:
    found = NetDeviceEdit(table.text("hostInterfaceName", required=True), table.text("name", required=True))
    for key, name in (("hostInterfaceName", found.host_name), ("name", found.name)):
        if not _INTERFACE.fullmatch(name):
            raise table.wrong(key, f"{name!r} cannot name a network interface")
    return found
