"""A container's mounts: the file systems every container has, the pod's files, and those the caller asked for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.base import ContainerPlan, Mount, Propagation
from engines.native import idmaps
from engines.native.host import Host, mount_table
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented, syscall_error
from forgeone_shim.kernel.cgroups import Mode

_FIELD = "mounts"
_OCTAL = re.compile(r"\\([0-7]{3})")
_SAFE = ["nosuid", "noexec", "nodev"]
# What a caller may add to a mount of its own (CRI ``Mount.mount_options``): restrictions, and when times are kept.
_OPTIONS = frozenset(("noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime"))


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A line of mountinfo: where, and its optional fields (``shared:N``, ``master:N``)."""

    target: str
    tags: frozenset[str]


def parse_mountinfo(text: str) -> list[MountPoint]:
    """Mount points in the kernel's order; a later one on the same target hides the earlier."""
    points = []
    for line in text.splitlines():
        left, _, _ = line.partition(" - ")
        fields = left.split(" ")
        target = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
        points.append(MountPoint(target, frozenset(tag.partition(":")[0] for tag in fields[6:])))
    return points


def mount_of(path: str, points: Sequence[MountPoint]) -> MountPoint:
    """The mount that ``path`` (resolved) lies on."""
    best = MountPoint("/", frozenset())
    for point in points:
        below = point.target in {"/", path} or path.startswith(point.target + "/")
        if below and len(point.target) >= len(best.target):
            best = point
    return best


def resolve(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Follow symlinks of sources, and make a directory of those that are not there (what every CRI runtime does)."""
    found = tuple(_resolve(mount) for mount in mounts)
    if not any(mount.uid_mappings for mount in found):
        return found
    points = [point.target for point in parse_mountinfo(mount_table())]
    return tuple(idmaps.with_submounts(found, points))


def _resolve(mount: Mount) -> Mount:
    if mount.image:
        raise Unimplemented(f"mount {mount.destination}: image volumes are not supported")
    idmaps.check(mount)
    if mount.recursive_read_only and not (mount.readonly and mount.propagation is Propagation.PRIVATE):
        raise InvalidInput(f"{_FIELD}.recursive_read_only", "needs readonly and private propagation")
    if refused := set(mount.options) - _OPTIONS:
        what = f"{mount.destination}: {', '.join(sorted(refused))}; known are {', '.join(sorted(_OPTIONS))}"
        raise InvalidInput(f"{_FIELD}.mount_options", what)
    if not mount.source.startswith("/") or "\0" in mount.source:
        raise InvalidInput(f"{_FIELD}.host_path", f"{mount.source!r} is not an absolute path")
    if not mount.destination.startswith("/") or "\0" in mount.destination:
        # A relative destination is taken from the container's root, as other runtimes do.
        if not mount.destination or "\0" in mount.destination:
            raise InvalidInput(f"{_FIELD}.container_path", f"{mount.destination!r} is not a path")
        mount = replace(mount, destination="/" + mount.destination)
    try:
        source = os.path.realpath(mount.source, strict=True)
    except FileNotFoundError:
        try:
            Path(mount.source).mkdir(parents=True, mode=0o755, exist_ok=True)
            source = os.path.realpath(mount.source, strict=True)
        except OSError as error:
            raise syscall_error("mkdir", mount.source, error) from error
    except OSError as error:
        raise InvalidInput(f"{_FIELD}.host_path", f"{mount.source}: {os.strerror(error.errno or errno.EIO)}") from error
    return replace(mount, source=source)


def propagation_tags(mounts: Sequence[Mount]) -> Mapping[str, MountPoint]:
    """The mount that each source with a propagation of its own lies on; the table is read only if there is one."""
    wanted = [mount.source for mount in mounts if mount.propagation is not Propagation.PRIVATE]
    if not wanted:
        return {}
    points = parse_mountinfo(mount_table())
    return {source: mount_of(source, points) for source in wanted}


def _check_propagation(mount: Mount, points: Mapping[str, MountPoint]) -> None:
    if mount.propagation is Propagation.PRIVATE:
        return
    point = points[mount.source]
    if "shared" in point.tags:
        return
    if mount.propagation is Propagation.BIDIRECTIONAL:
        raise FailedPrecondition(
            f'path "{mount.source}" is mounted on "{point.target}" but it is not a shared mount',
            fix=f"mount --make-rshared {point.target}",
        )
    if "master" not in point.tags:
        raise FailedPrecondition(
            f'path "{mount.source}" is mounted on "{point.target}" but it is not a shared or slave mount',
            fix=f"mount --make-rshared {point.target}",
        )


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
        _check_propagation(mount, points)
        if mount.recursive_read_only and not host.recursive_attributes:
            raise FailedPrecondition(
                f"mount {mount.destination}: recursive read-only mounts need mount_setattr(2), which this kernel lacks",
                fix="run Linux 5.12 or later",
            )
    taken = {_clean(mount.destination) for mount in asked}
    binds = [*(mount for mount in plan.pod_mounts if _clean(mount.destination) not in taken), *asked]
    taken |= {_clean(mount.destination) for mount in binds}
    found = [
        entry
        for entry in defaults(plan, host)
        if str(entry["destination"]) not in taken
        and not ("/dev" in taken and str(entry["destination"]).startswith("/dev/"))
    ]
    # Fewer parts first, so that no mount hides one below it.
    ordered = sorted(binds, key=lambda mount: _clean(mount.destination).count("/") if mount.destination != "/" else 0)
    found += [_bind(mount) for mount in ordered]
    wanted = {mount.propagation for mount in asked}
    if Propagation.BIDIRECTIONAL in wanted:
        return found, Propagation.BIDIRECTIONAL.value
    if Propagation.HOST_TO_CONTAINER in wanted:
        return found, Propagation.HOST_TO_CONTAINER.value
    return found, ""


def _clean(destination: str) -> str:
    return "/" + os.path.normpath("/" + destination).lstrip("/")
