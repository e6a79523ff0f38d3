"""From a container's plan to its jail: pure, given what :func:`gather` read from the host."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engines.base import ContainerPlan, IdMapping, Mount, NamespaceOptions, Namespaces, Problem, Profile, ProfileType
from engines.wasm.jail.filter import guest_profile
from engines.wasm.jail.plan import Bind, Extent, Filter, JailPlan
from forgeone_shim import binds
from forgeone_shim.binds import MountPoint
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unavailable
from forgeone_shim.kernel import landlock, profiles, selinux, trees
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits.resources import oom_score_adj

_SECURITY: Final = "linux.security_context"
# seccomp(2). All threads of the process come after the filter, so that TSYNC asks for nothing.
_FLAGS: Final = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
_TIMES: Final = frozenset(("noatime", "relatime"))
_ATTRIBUTES: Final = {"noatime": trees.NOATIME, "nodiratime": trees.NODIRATIME}
_KERNELS: Final = ("/proc/", "/sys/")
_INSTALL: Final = "apt-get install libseccomp2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What one plan needs to know of the host: resolved mounts and what they lie on, compiled filters, and the version
    of Landlock."""

    mounts: tuple[Mount, ...] = ()
    points: Mapping[str, MountPoint]
    filters: tuple[Filter, ...]
    landlock: int = 0


def gather(plan: ContainerPlan, compiler: Compiler, deadline: Deadline, *, seccomp_root: str = "") -> Gathered:
    """Read (and for missing mount sources, make) what the plan names on the host, and label mounts that are to be.

    ``seccomp_root`` is where profiles of the type Localhost must be, empty: anywhere.

    :raises InvalidInput: names what cannot be used.
    :raises Unavailable: this host cannot filter system calls.
    """
    asked = binds.resolve(plan.spec.mounts)
    filters = compile_filters(plan.spec.security.seccomp, compiler, seccomp_root)
    if plan.selinux.mount:
        for mount in (*plan.pod_mounts, *asked):
            if mount.selinux_relabel:
                selinux.relabel(mount.source, plan.selinux.mount, deadline)
    return Gathered(mounts=asked, points=binds.propagation_tags(asked), filters=filters, landlock=landlock.version())


def compile_filters(asked: Profile | None, compiler: Compiler, root: str) -> tuple[Filter, ...]:
    """The engine's own filter, whatever is asked for, and on top of it the profile of the type Localhost, if one is.

    :raises InvalidInput: the profile cannot be used.
    :raises Unavailable: there is nothing to compile them with.
    """
    local = asked if asked is not None and asked.type is ProfileType.LOCALHOST else None
    own = compiled(guest_profile(more=local is not None), compiler)
    if local is None:
        return (own,)
    profile = profiles.local_profile(root, local.localhost_ref)
    field = f"{_SECURITY}.seccomp.localhost_ref"
    flags = 0
    given: Any = profile.pop("flags", None) or ()
    for name in given:
        if name not in _FLAGS:
            raise InvalidInput(field, f"{local.localhost_ref}: flag {name!r} cannot be had")
        flags |= _FLAGS[name]
    program = compiler.compile(profile)
    if program is None:
        raise InvalidInput(field, f"{local.localhost_ref}: libseccomp makes no filter of it")
    return own, Filter(base64.b64decode(program), flags)


def compiled(profile: Mapping[str, object], compiler: Compiler) -> Filter:
    """One of the engine's own profiles as the kernel takes it; Unavailable where there is no library to do it."""
    program = compiler.compile(profile)
    if program is None:
        raise Unavailable("the system calls of a container cannot be filtered: no libseccomp", fix=_INSTALL)
    return Filter(base64.b64decode(program))


def plan_jail(plan: ContainerPlan, host: Host, found: Gathered) -> JailPlan:
    """The jail of a container.

    :raises InvalidInput: a path, a user or a limit that can never be.
    :raises FailedPrecondition: something that this host cannot do, or that no container of this engine can have.
    """
    security, paths, user = plan.spec.security, plan.namespaces, plan.process.user
    options = security.namespaces
    if paths.user == "":
        raise FailedPrecondition("a container's user namespace is its pod's: a new one cannot be made for it alone")
    for mount in found.mounts:
        binds.check_propagation(mount, found.points)
    arranged = binds.arranged(plan.pod_mounts, found.mounts)
    _check_ids(user.uid, (user.gid, *user.additional_gids), paths, options)
    return JailPlan(
        rootfs=plan.rootfs,
        readonly=security.readonly_rootfs,
        binds=tuple(_bind(mount, paths, options) for mount in arranged),
        dev=all(binds.clean(mount.destination) != "/dev" for mount in arranged),
        masked=_hidden("masked_paths", security.masked_paths, arranged),
        read_only_paths=_hidden("readonly_paths", security.readonly_paths, arranged),
        network=paths.network,
        ipc=paths.ipc,
        uts=paths.uts,
        pid=paths.pid,
        user=paths.user,
        hostname=plan.hostname,
        cgroups=directories(host, plan.cgroup),
        oom_score_adj=oom_score_adj(plan.spec.resources, host),
        root=root_on_host(paths, options),
        uid=user.uid,
        gid=user.gid,
        groups=user.additional_gids,
        cwd=_cwd(plan.process.cwd),
        landlock=found.landlock,
        filters=found.filters,
        selinux=plan.selinux.process,
        mount_label=plan.selinux.mount,
        apparmor=_apparmor(security.apparmor, host),
    )


def directories(host: Host, cgroup: str) -> tuple[str, ...]:
    """Where a process of the container writes itself into its cgroup, in every hierarchy."""
    return tuple(mount + host.cgroups.occupied(cgroup) for mount in host.cgroups.hierarchies)


def root_on_host(paths: Namespaces, options: NamespaceOptions) -> tuple[int, int]:
    """User and group on the host of the root of a pod."""
    if paths.user is None:
        return 0, 0
    return binds.on_host("user", options.uid_mappings, 0), binds.on_host("group", options.gid_mappings, 0)


def _check_ids(uid: int, gids: Sequence[int], paths: Namespaces, options: NamespaceOptions) -> None:
    if paths.user is not None:
        binds.on_host("user", options.uid_mappings, uid)
        for gid in gids:
            binds.on_host("group", options.gid_mappings, gid)


def _bind(mount: Mount, paths: Namespaces, options: NamespaceOptions) -> Bind:
    attributes = below = 0
    for option in mount.options:
        attributes |= _ATTRIBUTES.get(option, 0)
    if mount.recursive_read_only:
        below = trees.RDONLY
    elif mount.readonly:
        attributes |= trees.RDONLY
    pods = mount.uid_mappings == options.uid_mappings and mount.gid_mappings == options.gid_mappings
    owners = paths.user if mount.uid_mappings and pods and paths.user else ""
    return Bind(
        source=mount.source,
        destination=binds.clean(mount.destination),
        attributes=attributes,
        clear=trees.ATIME if _TIMES.intersection(mount.options) else 0,
        below=below,
        propagation=mount.propagation.value,
        owners=owners,
        uids=() if owners else _extents(mount.uid_mappings),
        gids=() if owners else _extents(mount.gid_mappings),
    )


def _extents(mappings: Sequence[IdMapping]) -> tuple[Extent, ...]:
    return tuple(Extent(one.container_id, one.host_id, one.length) for one in mappings)


def _hidden(field: str, paths: Sequence[str], mounts: Sequence[Mount]) -> tuple[str, ...]:
    for path in paths:
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput(f"{_SECURITY}.{field}", f"{path!r} is not absolute")
    # Nearly all are of a /proc and a /sys that are not there, unless a mount brings them.
    places = [f"{binds.clean(mount.destination)}/" for mount in mounts]
    if any(place.startswith(("//", *_KERNELS)) for place in places):
        return tuple(paths)
    return tuple(path for path in paths if not path.startswith(_KERNELS))


def _cwd(path: str) -> str:
    if path and (not path.startswith("/") or "\0" in path):
        raise InvalidInput("working_dir", f"{path!r} is not absolute")
    return path or "/"


def _apparmor(asked: Profile | None, host: Host) -> str:
    """The profile to change to. The default one forbids nothing that the jail leaves open."""
    if asked is None or asked.type is not ProfileType.LOCALHOST:
        return ""
    name = asked.localhost_ref.removeprefix("localhost/")
    if not name or any(character in name for character in "\0\n"):
        raise InvalidInput(f"{_SECURITY}.apparmor.localhost_ref", f"{name!r} is no profile's name")
    if not host.apparmor:
        raise FailedPrecondition(f"AppArmor profile {name!r} was asked for, but this host has no AppArmor")
    return name


def problems(host: Host, compiler: Compiler) -> list[Problem]:
    """What this host lacks for jails."""
    found = []
    if not compiler.usable:
        found.append(Problem("libseccomp is not installed", "the system calls of containers are filtered", _INSTALL))
    if not host.recursive_attributes:
        found.append(
            Problem("the kernel has no mount_setattr(2)", "mounts are made safe before they are seen", "run Linux 5.12")
        )
    if not landlock.version():
        why = "containers are kept from executing files and making devices by other means alone"
        found.append(Problem("the kernel has no Landlock", why, "boot with lsm=landlock,...", fatal=False))
    return found
