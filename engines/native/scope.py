"""The scope that systemd makes for a container, where it is asked to make control groups.

crun has the scope delegated to it (systemd.resource-control(5), Delegate=) and has the container one level below.
What systemd sets is the scope's, what crun and :mod:`engines.native.updates` set stays,
whenever systemd is reloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forgeone_shim.kernel import cgroups, mounts
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode

# crun(1). The group's default has changed between versions and layouts.
_SUBGROUP = "run.oci.systemd.subgroup"
_TASKS = "org.systemd.property.TasksMax"
_INFINITY = "uint64 18446744073709551615"


def orders(host: CgroupHost) -> Mapping[str, str]:
    """Annotations for crun: the container's processes are where :meth:`CgroupHost.directory` has them, and no limit is
    set that nobody asked for (``DefaultTasksMax=`` is some 15% of what the host can run; a pod's limit is its
    cgroup's)."""
    if host.driver is not Driver.SYSTEMD:
        return {}
    return {_SUBGROUP: cgroups.INNER if host.mode is Mode.V2 else "", _TASKS: _INFINITY}


def hold(host: CgroupHost, cgroup: str) -> None:
    """Keep what the kernel counts of a container until :func:`release`; a cgroup that is gone already is no error.

    systemd removes a scope that has become empty, and with it the count of processes killed for want of memory. A
    directory that something is mounted on cannot be removed. systemd itself overlooks mounts there.
    """
    if host.driver is Driver.SYSTEMD and (directory := host.directory("memory", cgroup)) and Path(directory).is_dir():
        mounts.bind(directory, directory)


def release(host: CgroupHost, cgroup: str) -> None:
    """Undo :func:`hold`; nothing to undo is no error."""
    if host.driver is Driver.SYSTEMD and (directory := host.directory("memory", cgroup)):
        mounts.unmount(directory)
