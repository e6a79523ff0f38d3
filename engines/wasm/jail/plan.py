"""What a jail is made of: plain data, decided in the daemon and carried out by :mod:`engines.wasm.jail.enter` and
:mod:`engines.wasm.jail.lock`."""

from __future__ import annotations

import msgspec


class Extent(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A line of ``/proc/PID/uid_map`` (user_namespaces(7))."""

    inside: int
    outside: int
    length: int


class Bind(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A host path seen in the jail; never with set-id bits, devices or programs that could be executed.

    ``attributes`` are more of mount_setattr(2)'s bits, ``clear`` those taken away, and ``below`` those that hold for
    what is mounted below the source, too. ``propagation`` is as in :class:`engines.base.Propagation`. The owners of
    files are shown as the user namespace at the path ``owners``, or one of these extents, maps them: then nothing that
    is mounted below comes along.
    """

    source: str
    destination: str
    attributes: int = 0
    clear: int = 0
    below: int = 0
    propagation: str = "rprivate"
    owners: str = ""
    uids: tuple[Extent, ...] = ()
    gids: tuple[Extent, ...] = ()


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A seccomp filter: the program as the kernel takes it, and flags of seccomp(2)."""

    program: bytes
    flags: int = 0


class JailPlan(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Everything about a jail. Paths are the host's, but for destinations, ``masked``, ``read_only_paths`` and ``cwd``.

    ``rootfs`` empty is an empty directory. Namespaces: ``None`` is the host's own, ``""`` a new one; a user namespace
    is never new. ``cgroups`` are directories of the cgroup in each hierarchy. ``root`` is who, on the host, the jail's
    root is: the owner of what is made in its files. ``uid``, ``gid`` and ``groups`` are ids of its user namespace.
    ``landlock`` is the version of the kernel's interface, 0 where it has none. Of ``filters`` the first is ours.
    ``selinux`` is the process's label, and ``mount_label`` that of the files which are made for it.
    """

    rootfs: str
    readonly: bool = False
    binds: tuple[Bind, ...] = ()
    dev: bool = True
    masked: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    network: str | None = None
    ipc: str | None = None
    uts: str | None = None
    pid: str | None = ""
    user: str | None = None
    hostname: str = ""
    cgroups: tuple[str, ...] = ()
    oom_score_adj: int = 0
    root: tuple[int, int] = (0, 0)
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    cwd: str = "/"
    landlock: int = 0
    filters: tuple[Filter, ...]
    selinux: str = ""
    mount_label: str = ""
    apparmor: str = ""
