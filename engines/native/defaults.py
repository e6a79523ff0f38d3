"""What a node's configuration adds to every container, or allows pods to ask for by annotation.

It is added to the plan before anything else looks at it, so that it is checked and made as if the caller had asked.
"""

from __future__ import annotations

import posixpath
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from engines.base import ContainerPlan, Device, Mount, Problem, Security
from engines.native import capabilities
from engines.native.devices import Node
from forgeone_shim import texts
from forgeone_shim.devices import names
from forgeone_shim.errors import FailedPrecondition, InvalidInput, PermissionDenied
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.texts import Ulimit

Json = dict[str, Any]

DEVICES_ANNOTATION: Final = names.HOST_ANNOTATION
CGROUP_ANNOTATION: Final = "forgeone.dev/cgroup-writable"
"""pod; whoever writes the pod

`true`: its containers can write to their cgroups (v2), to have cgroups of their own below. Refused with
PERMISSION_DENIED where `native.cgroup_writable` is `never`.
"""
CGROUP_WRITABLE: Final = ("never", "annotation", "always")

_ALL = "ALL"
_CGROUP = "/sys/fs/cgroup"
_BOUNDARY = "nsdelegate"
_DELEGATE = f"boot with cgroup v2, and mount -o remount,{_BOUNDARY} {_CGROUP}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultSettings:
    """That part of the engine's settings, as ``[native]`` has it."""

    default_env: tuple[str, ...] = ()
    default_mounts: tuple[str, ...] = ()
    default_capabilities: tuple[str, ...] = ()
    default_ulimits: tuple[str, ...] = ()
    additional_devices: tuple[str, ...] = ()
    allowed_devices: tuple[str, ...] = ()
    device_ownership_from_security_context: bool = False
    cgroup_writable: str = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The settings as they are used; ``capabilities`` is ``None`` where none were given, ``allowed_devices`` are the
    permissions by device."""

    env: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    allowed_devices: Mapping[str, str] = field(default_factory=dict)
    owned_devices: bool = False
    capabilities: frozenset[str] | None = None
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_writable: str = "never"

    @classmethod
    def read(cls, given: DefaultSettings) -> Defaults:
        """From the texts of the configuration; InvalidInput names the key."""
        if given.cgroup_writable not in CGROUP_WRITABLE:
            what = f"{given.cgroup_writable!r} is not one of {', '.join(CGROUP_WRITABLE)}"
            raise InvalidInput("native.cgroup_writable", what)
        named = capabilities.named("native.default_capabilities", given.default_capabilities)
        return cls(
            env=tuple(texts.variable("native.default_env", text) for text in given.default_env),
            mounts=tuple(
                Mount(one.destination, one.source, readonly=one.readonly)
                for one in (texts.mount("native.default_mounts", text) for text in given.default_mounts)
            ),
            devices=tuple(_device("native.additional_devices", text) for text in given.additional_devices),
            allowed_devices=_offered(given.allowed_devices),
            owned_devices=given.device_ownership_from_security_context,
            capabilities=named if given.default_capabilities else None,
            ulimits=tuple(texts.ulimit("native.default_ulimits", text) for text in given.default_ulimits),
            cgroup_writable=given.cgroup_writable,
        )

    def added_to(self, plan: ContainerPlan, host: Host) -> ContainerPlan:
        """The plan with the node's own wishes in it: the same object where there are none.

        :raises PermissionDenied: the pod asks for a device that the node does not offer.
        """
        spec = plan.spec
        devices = (*self.devices, *self._asked(plan))
        if devices:
            # Of two at one place the container's own counts.
            spec = replace(spec, devices=(*devices, *spec.devices))
        if self.mounts:
            taken = {posixpath.normpath(mount.destination) for mount in spec.mounts}
            spec = replace(spec, mounts=(*spec.mounts, *(one for one in self.mounts if one.destination not in taken)))
        if self.capabilities is not None:
            spec = replace(spec, security=with_base(spec.security, self.capabilities & host.capabilities))
        if self.env:
            plan = replace(plan, process=replace(plan.process, env=(*self.env, *plan.process.env)))
        return plan if spec is plan.spec else replace(plan, spec=spec)

    def _asked(self, plan: ContainerPlan) -> Iterable[Device]:
        text = plan.pod_annotations.get(DEVICES_ANNOTATION)
        if text is None:
            return
        for one in text.split(","):
            found = _device(f"annotations[{DEVICES_ANNOTATION!r}]", one.strip())
            if found.source not in self.allowed_devices:
                what = f"annotation {DEVICES_ANNOTATION}: this node does not offer {found.source} to pods"
                raise PermissionDenied(what, fix="native.allowed_devices lists what it does")
            most = self.allowed_devices[found.source]
            if not set(found.permissions) <= set(most):
                what = f"annotation {DEVICES_ANNOTATION}: this node offers {found.source} to pods with {most!r}"
                raise PermissionDenied(f"{what}, not {found.permissions!r}", fix=f"ask for {found.source}:{most}")
            yield found

    def problems(self, host: Host) -> list[Problem]:
        """What on this host is in the way of the settings."""
        found = [
            Problem(
                f"native.additional_devices: {device.source} is not there", "no container can be created without it"
            )
            for device in self.devices
            if not Path(device.source).exists()
        ]
        if self.cgroup_writable != "never" and (what := _undelegated(host)):
            why = f'native.cgroup_writable is "{self.cgroup_writable}", and such containers cannot be created'
            found.append(Problem(what, why, _DELEGATE, fatal=self.cgroup_writable == "always"))
        for wanted, given in zip(self.ulimits, (_limited(one, host) for one in self.ulimits), strict=True):
            if given != wanted:
                why = f"containers get no more than {given.hard}, as CAP_SYS_RESOURCE is missing"
                found.append(
                    Problem(f"native.default_ulimits: {wanted.name} cannot be {wanted.hard}", why, fatal=False)
                )
        return found

    def settle(self, whole: Json, plan: ContainerPlan, host: Host) -> None:
        """What only the finished ``config.json`` has a place for: process limits, a cgroup that can be written to.

        :raises PermissionDenied: the pod asks for its cgroup, and the node does not give it.
        """
        if self.ulimits:
            whole["process"]["rlimits"] = rlimits(self.ulimits, host)
        if self._writes_cgroup(plan) and not plan.spec.security.privileged:
            if what := _undelegated(host):
                raise FailedPrecondition(f"a container cannot be given its cgroup to write to: {what}", fix=_DELEGATE)
            for mount in whole["mounts"]:
                if mount["destination"] == _CGROUP and mount["type"] == "cgroup":
                    mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]

    def _writes_cgroup(self, plan: ContainerPlan) -> bool:
        text = plan.pod_annotations.get(CGROUP_ANNOTATION)
        if text not in (None, "true", "false"):
            raise InvalidInput(f"annotations[{CGROUP_ANNOTATION!r}]", f"{text!r} is neither true nor false")
        if text == "true" and self.cgroup_writable == "never":
            what = f"annotation {CGROUP_ANNOTATION}: this node does not give pods their cgroups to write to"
            raise PermissionDenied(what, fix='native.cgroup_writable = "annotation" would')
        return text == "true" or (text is None and self.cgroup_writable == "always")


def _undelegated(host: Host) -> str:
    """Why a container with a cgroup to write to could lift its own limits; empty where it cannot.

    With the mount option the kernel takes a cgroup namespace for a boundary: what limits its root cannot be written
    from inside (Documentation/admin-guide/cgroup-v2.rst, Model of Delegation).
    """
    if host.cgroups.mode is not Mode.V2:
        return "this host has no cgroup v2"
    return "" if _BOUNDARY in host.cgroup_mount_options else f"cgroup v2 is mounted without {_BOUNDARY}"


def _offered(devices: Sequence[str]) -> Mapping[str, str]:
    key, found = "native.allowed_devices", {}
    for text in devices:
        one = texts.device(key, text)
        if one.destination != one.source:
            raise InvalidInput(key, f"{text!r} says where it is in a container, which is for the pod to say")
        found[one.source] = one.permissions
    return found


def _device(key: str, text: str) -> Device:
    found = texts.device(key, text)
    return Device(found.destination, found.source, found.permissions)


def with_base(security: Security, base: frozenset[str]) -> Security:
    """The same wishes, as the difference between ``base`` and the capabilities that are given without any."""
    added = {*security.add_capabilities, *security.add_ambient_capabilities}
    named = capabilities.named("linux.security_context.capabilities", added)
    if {_ALL, f"CAP_{_ALL}"} & {name.upper() for name in (*added, *security.drop_capabilities)}:
        return security
    return replace(
        security,
        add_capabilities=(*security.add_capabilities, *sorted(base - capabilities.DEFAULT)),
        drop_capabilities=(*security.drop_capabilities, *sorted(capabilities.DEFAULT - base - named)),
    )


def rlimits(ulimits: Sequence[Ulimit], host: Host) -> list[Json]:
    """OCI ``process.rlimits``; of two of one kind the last counts.

    A process without CAP_SYS_RESOURCE cannot raise what it has itself, so there they are cut down to that.
    """
    limited = {one.kind: _limited(one, host) for one in ulimits}
    return [{"type": kind, "soft": one.soft, "hard": one.hard} for kind, one in limited.items()]


def _limited(one: Ulimit, host: Host) -> Ulimit:
    if "CAP_SYS_RESOURCE" in host.capabilities:
        return one
    own = resource.getrlimit(one.number)[1]
    most = texts.UNLIMITED if own == resource.RLIM_INFINITY else own
    return replace(one, soft=min(one.soft, most), hard=min(one.hard, most))


def owned(nodes: Sequence[Node], plan: ContainerPlan) -> tuple[Node, ...]:
    """The nodes that were asked for given to the user and group that the caller named, unless that is root."""
    security = plan.spec.security
    uid, gid = security.run_as_user, security.run_as_group
    if not (uid or gid):
        return tuple(nodes)
    places = [device.destination or device.source for device in plan.spec.devices]
    return tuple(
        replace(node, uid=uid or node.uid, gid=gid or node.gid)
        if any(node.path == place or node.path.startswith(place.rstrip("/") + "/") for place in places)
        else node
        for node in nodes
    )
