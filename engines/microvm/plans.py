"""From a container's plan to what its guest is told: pure, given its filter, its disks and its places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from engines.base import ContainerPlan, NamespaceMode, Resources, Security
from engines.microvm import refusals
from engines.microvm.volumes import Place, Shared
from engines.microvm.wire import messages
from engines.microvm.wire.messages import Caps, Create, Device, Program, Rootfs, Setting
from engines.microvm.wire.protocol import MountKind, PidMode
from engines.native import capabilities, spec
from forgeone_shim import binds
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.capabilities import KNOWN
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import resources as limits
from forgeone_shim.limits import updates

FSTYPE: Final = "erofs"
_ALL: Final = frozenset(KNOWN)
_SECURITY: Final = "linux.security_context"
_MS_RDONLY, _SAFE = 1, 2 | 4 | 8
_PERIOD: Final = 100_000
# What the kernel takes for cpu.shares.
_SHARES_MIN, _SHARES_MAX = 2, 262144
# The guest as limits see a host. It has no memory to swap to.
GUEST: Final = Host(
    cgroups=CgroupHost(
        mode=Mode.V2,
        driver=Driver.CGROUPFS,
        unified="/sys/fs/cgroup",
        v2_controllers=frozenset({"cpu", "cpuset", "io", "memory", "pids"}),
    ),
    capabilities=_ALL,
)


def held(security: Security) -> Sequence[str]:
    """The capabilities that a container can ever have, which a filter may depend on."""
    return capabilities.sets(security, _ALL)["bounding"]


def program(plan: ContainerPlan, seccomp: bytes, seccomp_flags: int = 0) -> Program:
    """The container's first process.

    :raises InvalidInput: no guest could execute it.
    """
    asked, security = plan.process, plan.spec.security
    if not asked.args or not asked.args[0]:
        raise InvalidInput("command", "is empty, and the image has none")
    if not (asked.cwd or "/").startswith("/"):
        raise InvalidInput("working_dir", f"{asked.cwd!r} is not absolute")
    return Program(
        args=asked.args,
        env=tuple(spec.environment(asked, hostname=plan.hostname, tty=plan.spec.tty)),
        cwd=asked.cwd or "/",
        uid=asked.user.uid,
        gid=asked.user.gid,
        groups=asked.user.additional_gids,
        tty=plan.spec.tty,
        stdin=plan.spec.stdin,
        caps=_caps(security),
        no_new_privs=security.no_new_privs,
        seccomp=seccomp,
        seccomp_flags=seccomp_flags,
        oom_score_adj=limits.oom_score_adj(plan.spec.resources, GUEST),
    )


def executed(first: Program, argv: Sequence[str], *, tty: bool, stdin: bool) -> Program:
    """One more process of a container, as the first one but for what it runs."""
    if not argv or not argv[0]:
        raise InvalidInput("cmd", "is empty")
    env = first.env
    if tty and not any(variable.startswith("TERM=") for variable in env):
        env = (*env, "TERM=xterm")
    return msgspec.structs.replace(first, args=tuple(argv), env=env, tty=tty, stdin=stdin)


def _caps(security: Security) -> Caps:
    sets = capabilities.sets(security, _ALL)

    def mask(name: str) -> int:
        return sum(1 << KNOWN.index(one) for one in sets.get(name, ()))

    return Caps(
        bounding=mask("bounding"),
        effective=mask("effective"),
        permitted=mask("permitted"),
        inheritable=mask("inheritable"),
        ambient=mask("ambient"),
    )


def rootfs(plan: ContainerPlan, luns: Sequence[int], size: int) -> Rootfs:
    """The image on the first disk, and a writable layer on the second one, or else of ``size`` bytes in memory."""
    in_memory = len(luns) == 1
    return Rootfs(
        lun=luns[0],
        fstype=FSTYPE,
        readonly=plan.spec.security.readonly_rootfs,
        upper_size=size if in_memory else 0,
        upper_lun=None if in_memory else luns[1],
    )


def create(
    plan: ContainerPlan, first: Program, root: Rootfs, places: Sequence[Place], paths: Mapping[Shared, str]
) -> Create:
    """The whole container; ``paths`` is where below its root the share has what is shared.

    :raises InvalidInput: a path, or a limit, that can never be.
    """
    security = plan.spec.security
    options = security.namespaces
    mounts = tuple(_mount(place, paths) for place in places)
    privileged = security.privileged
    return Create(
        container=plan.container_id,
        rootfs=root,
        program=first,
        pid_mode=_PID_MODES[options.pid],
        target=options.target_id if options.pid is NamespaceMode.TARGET else "",
        ipc_own=options.ipc is NamespaceMode.CONTAINER,
        mounts=(*_kernels(mounts, privileged=privileged), *mounts),
        masked=() if privileged else _absolute("masked_paths", security.masked_paths),
        readonly_paths=() if privileged else _absolute("readonly_paths", security.readonly_paths),
        devices=_devices(plan, mounts),
        cgroup=cgroup(plan.spec.resources),
    )


_PID_MODES: Final = {
    NamespaceMode.CONTAINER: PidMode.OWN,
    NamespaceMode.POD: PidMode.POD,
    NamespaceMode.TARGET: PidMode.TARGET,
}


def _mount(place: Place, paths: Mapping[Shared, str]) -> messages.Mount:
    if place.shared is None:
        return place.mount
    return msgspec.structs.replace(place.mount, source=paths[place.shared])


def _kernels(asked: Iterable[messages.Mount], *, privileged: bool) -> Iterable[messages.Mount]:
    """The kernel's file systems of a container that none of its own takes the place of; /dev is the agent's."""
    taken = {mount.destination for mount in asked}
    write = _SAFE if privileged else _SAFE | _MS_RDONLY
    for destination, kind, flags in (
        ("/proc", "proc", _SAFE),
        ("/sys", "sysfs", write),
        ("/sys/fs/cgroup", "cgroup2", write),
    ):
        if destination not in taken:
            yield messages.Mount(kind=MountKind.KERNEL, destination=destination, source=kind, flags=flags)


def _devices(plan: ContainerPlan, mounts: Sequence[messages.Mount]) -> tuple[Device, ...]:
    found = {binds.clean(one.destination or one.source): refusals.DEVICES[one.source] for one in plan.spec.devices}
    if plan.spec.security.privileged:
        # Where something is mounted no device can be made, and none is missed.
        covered = tuple(f"{mount.destination}/" for mount in mounts)
        machines = {name: one for name, one in refusals.PRIVILEGED.items() if not f"{name}/".startswith(covered)}
        found = machines | found
    return tuple(
        Device(name=name, mode=mode, uid=0, gid=0, kind=ord("c"), major=major, minor=minor)
        for name, (major, minor, mode) in found.items()
    )


def _absolute(field: str, paths: Sequence[str]) -> tuple[str, ...]:
    for path in paths:
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput(f"{_SECURITY}.{field}", f"{path!r} is not absolute")
    return tuple(paths)


def cgroup(asked: Resources) -> tuple[Setting, ...]:
    """Files of the container's cgroup in the guest, and what they are to say; what is not set is left out.

    :raises InvalidInput: a limit that can never be.
    :raises FailedPrecondition: a limit that no machine has.
    """
    refusals.limits(asked)
    found: Any = limits.limits(replace(asked, hugepages=()), GUEST)
    values: dict[str, str] = {}
    cpu = found.get("cpu", {})
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota", 0)
        values["cpu.max"] = f"{quota if quota > 0 else 'max'} {cpu.get('period', _PERIOD)}"
    if cpu.get("shares"):
        values["cpu.weight"] = str(updates.weight(min(max(cpu["shares"], _SHARES_MIN), _SHARES_MAX)))
    if limit := found.get("memory", {}).get("limit"):
        values["memory.max"] = _amount(limit)
    if limit := found.get("pids", {}).get("limit"):
        values["pids.max"] = _amount(limit)
    values.update(found.get("unified", {}))
    return tuple(Setting(name=name, value=value) for name, value in values.items())


def _amount(number: int) -> str:
    return "max" if number < 0 else str(number)
