"""What the kernel counts of a container in a scope of systemd's, kept beyond the last process."""

from __future__ import annotations

from pathlib import Path

from forgeone_shim.kernel import mounts
from forgeone_shim.kernel.cgroups import CgroupHost, Driver


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
