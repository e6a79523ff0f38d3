"""A container's mounts: the file systems every container has, the pod's files, and those the caller asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.base import ContainerPlan, Mount, Propagation
from engines.native import idmaps
from forgeone_shim.binds import MountPoint, arranged, check_propagation, clean
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host

_SAFE = ["nosuid", "noexec", "nodev"]


def _bind(mount: Mount) -> dict[str, object]:
    # crun(1): the recursive one holds for what is mounted below, too.
    mode = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    return {
        "destination": mount.destination,
        "type": "bind",
        "source": mount.source,
        "options": ["rbind", mount.propagation.value, mode, *mount.options],
        **idmaps.of_mount(mount),
    }


def defaults(plan: ContainerPlan, host: Host) -> list[dict[str, object]]:
    """The kernel file systems of a container, in the order they are mounted."""
    privileged = plan.spec.security.privileged
    write = "rw" if privileged else "ro"
    found: list[dict[str, object]] = [
        _fs("/proc", "proc", _SAFE),
        _fs("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _fs("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ]
    if plan.namespaces.ipc is not None:
        found.append(_fs("/dev/mqueue", "mqueue", _SAFE))
    if plan.namespaces.user is not None and plan.namespaces.network is None:
        # The kernel lets a user namespace mount a sysfs only for a network that belongs to it.
        # crun takes it from the host's mount namespace, as one of the host's peers: unless made private, what it then
        # mounts below, control groups and what hides masked paths, would be mounted on the host too.
        how = ["rbind", Propagation.PRIVATE.value, "rro", *_SAFE]
        found.append({"destination": "/sys", "type": "bind", "source": "/sys", "options": how})
    else:
        found.append(_fs("/sys", "sysfs", [*_SAFE, write]))
    options = [*_SAFE, "relatime", write]
    if privileged and host.cgroups.mode is Mode.V2:
        # Without a cgroup namespace this is the host's own superblock.
        options += host.cgroup_mount_options
    found.append(_fs("/sys/fs/cgroup", "cgroup", options))
    return found


def _fs(destination: str, kind: str, options: Sequence[str]) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def plan_mounts(
    plan: ContainerPlan, host: Host, asked: Sequence[Mount], points: Mapping[str, MountPoint]
) -> tuple[list[dict[str, object]], str]:
    """OCI ``mounts`` and ``rootfsPropagation`` (empty: the runtime's default, private).

    ``asked`` are the caller's mounts with resolved sources. The caller's win over the pod's files, and both over the
    default of the same destination; what would be hidden below a caller's own ``/dev`` is left out.
    """
    for mount in asked:
        check_propagation(mount, points)
        if mount.recursive_read_only and not host.recursive_attributes:
            raise FailedPrecondition(
                f"mount {mount.destination}: recursive read-only mounts need mount_setattr(2), which this kernel lacks",
                fix="run Linux 5.12 or later",
            )
    binds = arranged(plan.pod_mounts, asked)
    taken = {clean(mount.destination) for mount in binds}
    found = [
        entry
        for entry in defaults(plan, host)
        if str(entry["destination"]) not in taken
        and not ("/dev" in taken and str(entry["destination"]).startswith("/dev/"))
    ]
    found += [_bind(mount) for mount in binds]
    wanted = {mount.propagation for mount in asked}
    if Propagation.BIDIRECTIONAL in wanted:
        return found, Propagation.BIDIRECTIONAL.value
    if Propagation.HOST_TO_CONTAINER in wanted:
        return found, Propagation.HOST_TO_CONTAINER.value
    return found, ""
