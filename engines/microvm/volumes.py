"""A container's mounts as its machine gets them: which are shared with the host, and which live in the guest."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.base import ContainerPlan, Mount, Propagation
from engines.microvm.wire import messages
from engines.microvm.wire.protocol import MountKind
from forgeone_shim import binds
from forgeone_shim.errors import FailedPrecondition, InvalidInput, syscall_error
from forgeone_shim.kernel.mounts import clone, mounts_below, set_apart

_FIELD: Final = "mounts"
_SHM: Final = "/dev/shm"  # noqa: S108
# mount(2)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME, _MS_NODIRATIME, _MS_RELATIME = (
    1,
    2,
    4,
    8,
    1024,
    2048,
    1 << 21,
)
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_FLAGS: Final[Mapping[str, int]] = {
    "nosuid": _MS_NOSUID,
    "nodev": _MS_NODEV,
    "noexec": _MS_NOEXEC,
    "noatime": _MS_NOATIME,
    "nodiratime": _MS_NODIRATIME,
    "relatime": _MS_RELATIME,
}
# Where a kubelet has a pod's volumes, and where it binds a part of one of them (``subPath``) for a container.
_EMPTY_DIRS: Final = "volumes/kubernetes.io~empty-dir"
_EMPTY_DIR: Final = re.compile(rf".*/pods/[^/]+/{re.escape(_EMPTY_DIRS)}/(?P<name>[^/]+)\Z")
_SUB_PATH: Final = re.compile(r"(?P<pod>.*/pods/[^/]+)/volume-subpaths/(?P<name>[^/]+)/[^/]+/\d+\Z")


@dataclass(frozen=True, slots=True)
class Shared:
    """Something of the host's that the machine is given: a path, and whether it may be written to there.

    ``live``: what the host mounts below it later is seen. ``top_readonly``: it may be written to in what is mounted
    below it alone. ``common``: containers that share it hear of each other's changes to it (inotify).
    """

    source: str
    readonly: bool
    live: bool = False
    top_readonly: bool = False
    common: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A mount in the container: of the share ``shared``, or of what lives in the guest where that is ``None``."""

    mount: messages.Mount
    shared: Shared | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What a mount's source is on the host: its type (stat(2)).

    ``memory`` is the size of an emptyDir in memory, -1 for anything else; ``part_of`` the name of such a one where the
    source is a part of it. ``nested``: there are mounts below it; told of what is to be read-only. ``group`` is whose
    it is, which a pod's ``fsGroup`` has decided.
    """

    mode: int
    memory: int = -1
    part_of: str = ""
    nested: bool = False
    group: int = 0


def look(mounts: Sequence[Mount]) -> dict[str, Source]:
    """What lies at the (resolved) sources."""
    found: dict[str, Source] = {}
    guarded = {mount.source for mount in mounts if mount.readonly}
    points = mounts_below("/") if guarded else []
    for mount in mounts:
        path = mount.source
        if path in found:
            continue
        try:
            known = Path(path).stat()
            mode = known.st_mode
            memory = _memory(path) if _EMPTY_DIR.match(path) else -1
        except OSError as error:
            raise syscall_error("look at", path, error) from error
        below = os.path.realpath(path).rstrip("/") + "/"
        nested = path in guarded and stat.S_ISDIR(mode) and any(one != "/" and one.startswith(below) for one in points)
        found[path] = Source(mode, memory, _part_of(path), nested, known.st_gid)
    return found


def _memory(path: str) -> int:
    """The size of the file system that is mounted there, -1 where none is."""
    at = Path(path)
    if at.stat().st_dev == at.parent.stat().st_dev:
        return -1
    held = os.statvfs(path)
    return held.f_blocks * held.f_frsize


def _part_of(path: str) -> str:
    match = _SUB_PATH.match(path)
    if match is None:
        return ""
    try:
        return match["name"] if _memory(f"{match['pod']}/{_EMPTY_DIRS}/{match['name']}") >= 0 else ""
    except OSError:
        return ""


def plan(asked: ContainerPlan, mounts: Sequence[Mount], sources: Mapping[str, Source]) -> list[Place]:
    """Every mount of the container in the order it is made: the pod's files, and ``mounts`` with resolved sources.

    ``sources`` is what :func:`look` said of all of them; the pod's /dev/shm is the guest's own.

    An emptyDir in memory is one in the guest's memory. One on disk stays on the host's, where the kubelet measures it.

    :raises InvalidInput: names a mount that a machine cannot have, and why.
    """
    shm = next((mount.source for mount in asked.pod_mounts if mount.destination == _SHM), "")
    return [_place(mount, sources.get(mount.source), shm) for mount in binds.arranged(asked.pod_mounts, mounts)]


def _place(mount: Mount, source: Source | None, shm: str) -> Place:
    destination = binds.clean(mount.destination)
    readonly = mount.readonly or mount.recursive_read_only
    flags = _MS_RDONLY if readonly else 0
    for option in mount.options:
        flags |= _FLAGS[option]
    _check(mount)
    if source is None or mount.source == shm:
        return Place(messages.Mount(kind=MountKind.SHM, destination=destination, flags=flags))
    match = _EMPTY_DIR.match(mount.source)
    if match is not None and source.memory >= 0:
        settings = {"size": source.memory, "gid": source.group}
        options = ",".join(f"{name}={value}" for name, value in settings.items() if value)
        inside = messages.Mount(
            kind=MountKind.POD,
            source=match["name"],
            destination=destination,
            flags=flags,
            options=options,
            mode=stat.S_IMODE(source.mode),
        )
        return Place(inside)
    what = _UNFIT.get(stat.S_IFMT(source.mode))
    if what is not None:
        raise InvalidInput(
            f"{_FIELD}.host_path", f"{mount.source} is {what} of the host's, which a machine of its own cannot reach"
        )
    if source.part_of:
        raise InvalidInput(
            f"{_FIELD}.host_path",
            f"{mount.source} is a part of the emptyDir {source.part_of!r}, which is in memory, and so in the machine",
            fix="mount the whole of it, or let it be on disk",
        )
    live = mount.propagation is not Propagation.PRIVATE
    # The share is one file system for the guest, whatever it is on the host: there is no read-only part of it there.
    top = readonly and source.nested and not (mount.recursive_read_only or live)
    inside = messages.Mount(
        kind=MountKind.SHARE,
        destination=destination,
        source="/",
        flags=flags & ~_MS_RDONLY if top else flags,
        propagation=_MS_PRIVATE | _MS_REC,
    )
    # Nobody mounts anything below an emptyDir, so a container that comes later would see no more than one before.
    common = match is not None and not (live or top)
    return Place(inside, Shared(mount.source, readonly and not top, live, top, common))


_UNFIT: Final = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a fifo",
}


def _check(mount: Mount) -> None:
    if mount.propagation is Propagation.BIDIRECTIONAL:
        raise InvalidInput(
            f"{_FIELD}.propagation", f"{mount.destination}: what a machine mounts cannot be seen by the host"
        )
    if mount.uid_mappings or mount.gid_mappings:
        raise FailedPrecondition(f"mount {mount.destination}: the microvm engine has no id-mapped mounts")


def opened(places: Sequence[Place], stack: ExitStack) -> dict[Shared, int]:
    """A descriptor (O_PATH) of each thing that is shared; ``stack`` closes them.

    But for what is to be live it is of a mount of its own, so that the host's can be unmounted meanwhile.
    """
    found: dict[Shared, int] = {}
    for place in places:
        if place.shared is None or place.shared in found:
            continue
        try:
            found[place.shared] = _open(place.shared, stack)
        except OSError as error:
            raise syscall_error("open", place.shared.source, error) from error
    return found


def _open(shared: Shared, stack: ExitStack) -> int:
    fd = os.open(shared.source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    if shared.live:
        return fd
    apart = clone(f"/proc/self/fd/{fd}", recursive=True)
    stack.callback(os.close, apart)
    set_apart(apart, readonly=shared.top_readonly)
    return apart
