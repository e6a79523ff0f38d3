"""A new container's control group with its limits, for engines that no other program makes one for.

With systemd's driver the group is a transient scope (:mod:`forgeone_shim.limits.scopes`); what is below it is ours.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from engines.base import BlockIO, Resources
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InternalError, InvalidInput, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import resources as limits
from forgeone_shim.limits import scope, updates
from forgeone_shim.limits.blockio import limit_io

_GONE_SECONDS = 10.0
_CPUSET = ("cpuset.cpus", "cpuset.mems")
# Threaded controllers and those of whole domains that limit anything a caller can ask for.
_DELEGATED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


def warm(host: Host) -> None:
    """Beside what comes next, so that the process which is soon put into a cgroup need not wait for the kernel."""
    if not host.quick_moves:
        threading.Thread(target=cgroups.warm, args=(host.cgroups,), daemon=True).start()


@contextlib.contextmanager
def made(
    host: Host, cgroup: str, asked: Resources, deadline: Deadline, blockio: BlockIO | None = None
) -> Iterator[None]:
    """Make a container's cgroup with these limits; the block puts the container's first process into it.

    Whatever is raised, here or in the block, the cgroup is gone again with all that was in it.

    :raises InvalidInput: a limit that can never be.
    :raises FailedPrecondition: a limit that this host, or the pod's cgroup, does not allow.
    :raises Unavailable: systemd, which is to make it, does not answer.
    """
    if not cgroups.relative(cgroup):
        raise InvalidInput("cgroup", "a container's is none of its own but the root")
    limits.limits(asked, host)
    with ExitStack() as undo, ExitStack() as held:
        undo.callback(_gone, host.cgroups, cgroup)
        if host.cgroups.driver is Driver.SYSTEMD and ":" in cgroup:
            # Not before it is needed: D-Bus is no business of hosts without systemd.
            from forgeone_shim.limits import scopes

            held.enter_context(scopes.started(host.cgroups, cgroup, deadline))
        prepare(host.cgroups, cgroup)
        writes = updates.plan(asked, host, cgroup)
        with updates.applied(writes):
            if blockio is not None:
                limit_io(blockio, host.cgroups, cgroup)
            scope.hold(host.cgroups, cgroup)
            yield
        undo.pop_all()


def remove(host: CgroupHost, cgroup: str) -> None:
    """Kill what is in the cgroup of a container and remove it; none is no error.

    :raises InternalError: a process does not die.
    """
    if not cgroups.kill_all(host, cgroup, timeout=_GONE_SECONDS):
        raise InternalError(f"processes in cgroup {cgroup} do not die")
    scope.release(host, cgroup)
    cgroups.remove(host, cgroup)


def _gone(host: CgroupHost, cgroup: str) -> None:
    with contextlib.suppress(ForgeError):
        remove(host, cgroup)


def prepare(host: CgroupHost, cgroup: str) -> None:
    """Make the directories of a cgroup in every hierarchy, such that limits can be set and processes be put there.

    :raises InternalError: the kernel refuses one.
    """
    tail = host.occupied(cgroup)
    try:
        for mount in host.hierarchies:
            if host.mode is Mode.V2:
                _enable(mount, tail)
            elif mount == host.v1.get("cpuset"):
                _inherit(mount, tail)
            else:
                Path(mount + tail).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise syscall_error("make cgroup", error.filename or cgroup, error) from error


def _ancestors(tail: str) -> Iterator[str]:
    """The root of the hierarchy, then each group on the way to ``tail``."""
    path = ""
    yield path
    for part in tail.split("/")[1:]:
        path = f"{path}/{part}"
        yield path


def _enable(mount: str, tail: str) -> None:
    """cgroup-v2.rst, Enabling and Disabling: a controller is there where every group above has it on for its own."""
    *above, last = _ancestors(tail)
    for path in above:
        directory = Path(mount + path)
        directory.mkdir(exist_ok=True)
        there = set((directory / "cgroup.controllers").read_text().split())
        on = set((directory / "cgroup.subtree_control").read_text().split())
        for controller in _DELEGATED:
            if controller in there - on:
                # One that cannot be had here (a threaded group, real-time processes) is missed where a limit needs it.
                with contextlib.suppress(OSError):
                    cgroups.write(f"{directory}/cgroup.subtree_control", f"+{controller}")
    Path(mount + last).mkdir(exist_ok=True)


def _inherit(mount: str, tail: str) -> None:
    """cgroup-v1/cpusets.rst: a new group has no processors and no memory nodes, and nothing can be put into it."""
    above = ""
    for path in _ancestors(tail):
        Path(mount + path).mkdir(exist_ok=True)
        for name in _CPUSET if path else ():
            if not updates.read(f"{mount}{path}/{name}"):
                _copy(f"{mount}{above}/{name}", f"{mount}{path}/{name}")
        above = path


def _copy(source: str, target: str) -> None:
    try:
        cgroups.write(target, updates.read(source))
    except OSError as error:
        # Another container's group was made at the same moment, and it says the same.
        if error.errno not in (errno.EBUSY, errno.EACCES) or not updates.read(target):
            raise
