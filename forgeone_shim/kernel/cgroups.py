"""Control groups on v1, hybrid and v2 hosts: where they are, making, emptying and removing them.

A *cgroup* here is written as an engine's plan writes it: ``/kubepods/pod1/<id>`` with the cgroupfs driver, or
``kubepods-pod1.slice:forgeone:<id>`` with systemd's. :meth:`CgroupHost.paths` turns it into directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.kernel.procs import Pidfd

ROOT = "/sys/fs/cgroup"
SYSTEMD_RUNNING = "/run/systemd/system"
PREFIX = "forgeone"
#: Where below its scope, on v2, a container's processes and limits are: what is there is nobody's but the runtime's.
INNER = "container"
_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")


class Mode(StrEnum):
    """How a host lays out its control groups (systemd's words)."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


class Driver(StrEnum):
    """Who makes control groups: the runtime itself, or systemd when asked."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupHost:
    """What this host has. ``v1`` maps a controller (or ``name=x``) to its mount; ``unified`` is the v2 mount or ``""``;
    ``v2_controllers`` are those the unified hierarchy offers at its root."""

    mode: Mode
    driver: Driver
    v1: Mapping[str, str] = field(default_factory=dict)
    unified: str = ""
    v2_controllers: frozenset[str] = frozenset()

    @property
    def hierarchies(self) -> tuple[str, ...]:
        """Every mount point in which a container's cgroup appears, each once."""
        found = dict.fromkeys(self.v1.values())
        if self.unified:
            found[self.unified] = None
        return tuple(found)

    def has(self, controller: str) -> bool:
        """Whether limits of that controller can be set on this host."""
        return controller in self.v1 or (self.mode is Mode.V2 and controller in self.v2_controllers)

    def directory(self, controller: str, cgroup: str) -> str | None:
        """The directory of ``cgroup`` for one controller: of a container, the one with its processes and limits."""
        mount = self.unified if self.mode is Mode.V2 else self.v1.get(controller)
        return None if not mount else mount + self.occupied(cgroup)

    def occupied(self, cgroup: str) -> str:
        """As :func:`relative`; of a scope on v2 the group in it."""
        tail = relative(cgroup)
        return f"{tail}/{INNER}" if self.mode is Mode.V2 and ":" in cgroup else tail

    def paths(self, cgroup: str) -> tuple[str, ...]:
        """The directories of ``cgroup`` in every hierarchy; a container's scope, where it has one."""
        tail = relative(cgroup)
        return tuple(mount + tail for mount in self.hierarchies)

    def container(self, parent: str, container_id: str) -> str:
        """The cgroup of a container below its pod's."""
        if self.driver is Driver.SYSTEMD:
            return f"{slice_name(parent)}:{PREFIX}:{container_id}"
        return f"{plain(parent)}/{container_id}"


def plain(cgroup: str) -> str:
    """An absolute cgroup path without a trailing slash; anything that climbs out is refused."""
    parts = [part for part in cgroup.split("/") if part]
    if any(part in {".", ".."} or "\0" in part or "\n" in part for part in parts):
        raise InvalidInput("cgroup_parent", f"{cgroup!r} is not a plain path")
    return "/" + "/".join(parts) if parts else ""


def slice_name(parent: str) -> str:
    """The slice unit that ``parent`` names: ``/a/b-c.slice`` and ``b-c.slice`` are ``b-c.slice``, ``/forgeone`` is
    ``forgeone.slice``."""
    name = plain(parent).rpartition("/")[2]
    if not name:
        return "-.slice"
    return name if name.endswith(".slice") else f"{name}.slice"


def check_parent(driver: Driver, parent: str) -> None:
    """Refuse a pod's parent that only the other driver can make.

    A kubelet and its runtime that use different drivers would each put the pod elsewhere, and limit one of the two.

    :raises InvalidInput: it is no plain path, or not of the driver's form.
    """
    relative(parent)
    name = plain(parent).rpartition("/")[2]
    if driver is Driver.SYSTEMD:
        if not name.endswith(".slice"):
            raise InvalidInput("cgroup_parent", f"{parent!r} is no slice, and the cgroup driver is systemd", fix=_SAME)
        slice_path(name)
    elif "/" not in parent and name.endswith(".slice"):
        raise InvalidInput("cgroup_parent", f"{parent!r} is a slice, and the cgroup driver is cgroupfs", fix=_SAME)


_SAME = "give the kubelet's cgroupDriver and native.cgroup_driver the same value"


def slice_path(unit: str) -> str:
    """Where systemd puts a slice: ``a-b.slice`` is ``/a.slice/a-b.slice`` (systemd.slice(5))."""
    stem = unit.removesuffix(".slice")
    if stem in {"", "-"}:
        return ""
    words = stem.split("-")
    if not unit.endswith(".slice") or "/" in unit or not all(words):
        raise InvalidInput("cgroup_parent", f"{unit!r} is not a slice name")
    return "".join(f"/{'-'.join(words[: depth + 1])}.slice" for depth in range(len(words)))


def relative(cgroup: str) -> str:
    """The path of ``cgroup`` below a hierarchy's mount: with a leading slash, or empty for the root."""
    if ":" not in cgroup:
        if cgroup.endswith(".slice") and "/" not in cgroup:
            return slice_path(cgroup)
        return plain(cgroup)
    unit, _, rest = cgroup.partition(":")
    prefix, colon, name = rest.partition(":")
    if not colon or "/" in rest:
        raise InvalidInput("cgroup", f"{cgroup!r} is not SLICE:PREFIX:NAME")
    return f"{slice_path(unit)}/{plain(f'{prefix}-{name}.scope')[1:]}"


def parse_mounts(mountinfo: str) -> tuple[dict[str, str], str]:
    """Controllers of v1 with their mounts, and the v2 mount, below :data:`ROOT` in ``/proc/self/mountinfo`` text."""
    v1: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        target = left.split()[4].encode().decode("unicode_escape")
        kind, _, options = right.split(" ", 2)
        if target != ROOT and not target.startswith(ROOT + "/"):
            continue
        if kind == "cgroup2":
            unified = unified or target
        elif kind == "cgroup":
            for option in options.split(","):
                if option.startswith("name=") or option in _V1_CONTROLLERS:
                    v1.setdefault(option, target)
    return v1, unified


_V1_CONTROLLERS = frozenset(
    {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio"}
    | {"perf_event", "rdma", "misc"}
)


def detect(driver: str = "auto") -> CgroupHost:
    """Look at this host. ``driver`` is ``systemd``, ``cgroupfs`` or ``auto``: systemd's where systemd runs."""
    v1, unified = parse_mounts(Path("/proc/self/mountinfo").read_text())
    offered: frozenset[str] = frozenset()
    if unified:
        with contextlib.suppress(OSError):
            offered = frozenset(Path(unified, "cgroup.controllers").read_text().split())
    mode = (Mode.HYBRID if unified else Mode.V1) if v1 else Mode.V2
    if driver == "auto":
        chosen = Driver.SYSTEMD if Path(SYSTEMD_RUNNING).is_dir() else Driver.CGROUPFS
    elif driver in set(Driver):
        chosen = Driver(driver)
    else:
        raise InvalidInput("native.cgroup_driver", f"{driver!r} is none of auto, cgroupfs, systemd")
    return CgroupHost(mode=mode, driver=chosen, v1=v1, unified=unified, v2_controllers=offered)


def parent(cgroup: str) -> str:
    """The pod's cgroup of a container's."""
    unit, colon, _ = cgroup.partition(":")
    return unit if colon else plain(cgroup).rpartition("/")[0]


def make(host: CgroupHost, cgroup: str) -> None:
    """Make ``cgroup`` with its parents in every hierarchy. With systemd's driver slices are systemd's to make."""
    if host.driver is Driver.SYSTEMD and cgroup.partition(":")[0].endswith(".slice"):
        return
    for path in host.paths(cgroup):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise syscall_error("mkdir", path, error) from error


def create_pod_cgroup(host: CgroupHost, parent: str) -> None:
    """Make a pod's cgroup; one that is there already (a kubelet makes its own) is left as it is."""
    make(host, parent)


def exists(host: CgroupHost, cgroup: str) -> bool:
    """Whether ``cgroup`` is there (in the hierarchy that every container is in)."""
    if host.mode is Mode.V2:
        return Path(host.unified + host.occupied(cgroup)).is_dir()
    return any(Path(path).is_dir() for path in _preferred(host, cgroup))


def remove_empty(host: CgroupHost, cgroup: str) -> None:
    """Remove ``cgroup`` wherever nothing is below or in it; what is in use stays."""
    if relative(cgroup):
        for path in host.paths(cgroup):
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def remove(host: CgroupHost, cgroup: str, timeout: float = 5.0) -> None:
    """Remove ``cgroup`` and what is below it in every hierarchy; none is no error.

    A cgroup that still holds processes after ``timeout`` seconds raises InternalError.
    """
    if not relative(cgroup):
        return
    for path in host.paths(cgroup):
        remove_tree(path, timeout)


def remove_tree(path: str, timeout: float = 5.0) -> None:
    """Remove one cgroup directory with all below it, waiting for the last exits to be counted. Idempotent."""
    limit = time.monotonic() + timeout
    wait = 0.0005
    while True:
        try:
            _rmdir(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            left = limit - time.monotonic()
            if error.errno != errno.EBUSY or left <= 0:
                raise syscall_error("rmdir", path, error) from error
            _wait_for_change(path, min(wait, left))
            wait = min(wait * 2, 0.05)
        else:
            return


def _rmdir(path: str) -> None:
    try:
        Path(path).rmdir()
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
            raise
        below = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
        if not below:
            raise
        for child in below:
            with contextlib.suppress(FileNotFoundError):
                _rmdir(child)
        Path(path).rmdir()


def _wait_for_change(path: str, seconds: float) -> None:
    """v2 tells when a cgroup empties; v1 has no such event, there time alone passes."""
    try:
        fd = os.open(path + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        time.sleep(seconds)
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        if b"populated 1" in os.read(fd, 256):
            poll.poll(seconds * 1000)
        else:
            time.sleep(seconds)
    finally:
        os.close(fd)


def processes(host: CgroupHost, cgroup: str) -> list[int]:
    """The pids in ``cgroup`` and below it."""
    for path in _preferred(host, cgroup):
        if not Path(path).is_dir():
            continue
        found: list[int] = []
        for directory, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]
        return found
    return []


def _preferred(host: CgroupHost, cgroup: str) -> list[str]:
    """Directories that know the processes, best first: not every hierarchy of a v1 host need have them."""
    if host.mode is Mode.V2:
        return [host.unified + relative(cgroup)]
    found = (host.directory(controller, cgroup) for controller in ("freezer", "devices", "pids", "memory", "cpu"))
    return [path for path in found if path]


def kill_all(host: CgroupHost, cgroup: str, number: int = signal.SIGKILL, timeout: float = 0.0) -> bool:
    """Signal every process of ``cgroup``; whether all were gone within ``timeout`` seconds.

    SIGKILL leaves nothing out: v2 has a file for it, on v1 the cgroup is frozen first so that nothing can fork away.
    """
    if not relative(cgroup):
        return True
    limit = time.monotonic() + timeout
    while True:
        held = _signal_once(host, cgroup, number)
        if not held or number != signal.SIGKILL:
            return not held
        try:
            if not all(pidfd.wait(max(0.0, limit - time.monotonic())) for pidfd in held):
                return False
        finally:
            for pidfd in held:
                pidfd.close()


def _signal_once(host: CgroupHost, cgroup: str, number: int) -> list[Pidfd]:
    found = processes(host, cgroup)
    if not found:
        return []
    held: list[Pidfd] = []
    freezer = None if host.mode is Mode.V2 else host.directory("freezer", cgroup)
    with contextlib.ExitStack() as stack:
        if number == signal.SIGKILL:
            with contextlib.suppress(OSError):
                if host.mode is Mode.V2:
                    write(host.unified + relative(cgroup) + "/cgroup.kill", "1")
                elif freezer:
                    write(freezer + "/freezer.state", "FROZEN")
                    stack.callback(_write_quietly, freezer + "/freezer.state", "THAWED")
                    found = processes(host, cgroup)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                pidfd = Pidfd(pid)
                pidfd.send(number)
                held.append(pidfd)
    return held


def write(path: str, text: str) -> None:
    """Write to one of the kernel's files, at once and whole; what it refuses is an OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _write_quietly(path: str, text: str) -> None:
    with contextlib.suppress(OSError):
        write(path, text)


def warm(host: CgroupHost) -> None:
    """Open the window in which moving a process between cgroups is fast; takes some milliseconds, best beside others.

    The first move after an idle while waits for an RCU grace period, and those that follow soon do not
    (``cgroup_threadgroup_rwsem``). Moving this process to where it is already counts as one.
    """
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        mount = host.unified if not controllers else host.v1.get(controllers.split(",")[0], "")
        if mount and (host.mode is Mode.V2 or controllers):
            with contextlib.suppress(OSError):
                write(f"{mount}{path.rstrip('/')}/cgroup.procs", "0")
                return


def oom_kills(host: CgroupHost, cgroup: str) -> int:
    """How many processes of ``cgroup`` the kernel killed for want of memory; 0 when the cgroup is gone."""
    directory = host.directory("memory", cgroup)
    if directory is None:
        return 0
    name = "memory.events" if host.mode is Mode.V2 else "memory.oom_control"
    try:
        text = Path(directory, name).read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
