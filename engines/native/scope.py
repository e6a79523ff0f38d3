"""The scope that systemd makes for a container, where it is asked to make control groups.

crun has the scope delegated to it (systemd.resource-control(5), Delegate=) and has the container one level below.
What systemd sets is the scope's, what crun and :mod:`forgeone_shim.limits.updates` set stays,
whenever systemd is reloaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from forgeone_shim.kernel import cgroups
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
