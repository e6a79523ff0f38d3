"""The mounts that a container asks for: checked, their sources resolved, and in the order they are made in."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.base import IdMapping, Mount, Propagation
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented, syscall_error

_FIELD = "mounts"
_OCTAL = re.compile(r"\\([0-7]{3})")
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
    return tuple(with_submounts(found, points))


def _resolve(mount: Mount) -> Mount:
    if mount.image:
        raise Unimplemented(f"mount {mount.destination}: image volumes are not supported")
    _check_mappings(mount)
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


def check_propagation(mount: Mount, points: Mapping[str, MountPoint]) -> None:
    """FailedPrecondition where the mount that the source lies on passes nothing on."""
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


def _check_mappings(mount: Mount) -> None:
    """Whether a mount has both mappings or neither; InvalidInput says what is missing."""
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        missing = "gidMappings" if mount.uid_mappings else "uidMappings"
        raise InvalidInput(f"mounts.{missing}", f"{mount.destination}: is missing where its twin is given")


def with_submounts(mounts: Sequence[Mount], mount_points: Sequence[str]) -> Iterator[Mount]:
    """The mounts, each id-mapped one followed by what is mounted below its source (a resolved path).

    An id-mapped mount is made without those. They come as they are, with the owners they have on the host: only what
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


def arranged(pods: Sequence[Mount], asked: Sequence[Mount]) -> list[Mount]:
    """The caller's mounts and the pod's, of which the caller's win; fewer parts first, so that none hides another."""
    taken = {clean(mount.destination) for mount in asked}
    binds = [*(mount for mount in pods if clean(mount.destination) not in taken), *asked]
    return sorted(binds, key=lambda mount: clean(mount.destination).count("/") if mount.destination != "/" else 0)


def clean(destination: str) -> str:
    """A path inside the container without doubled slashes, ``.`` and ``..``."""
    return "/" + os.path.normpath("/" + destination).lstrip("/")


def on_host(noun: str, mappings: Sequence[IdMapping], number: int) -> int:
    """What an id of a user namespace is on the host; InvalidInput where it is not mapped."""
    for one in mappings:
        if one.container_id <= number < one.container_id + one.length:
            return one.host_id + number - one.container_id
    raise InvalidInput(noun, f"{noun} {number} is not mapped in the pod's user namespace")


def mount_table() -> str:
    """``/proc/self/mountinfo`` as it is now."""
    return Path("/proc/self/mountinfo").read_text()
