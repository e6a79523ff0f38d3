"""What a host that runs the tests says about itself, in its environment.

``LAB_CGROUP_DRIVER``
    ``native.cgroup_driver`` of every forgeoned of the lab's (``auto``).
``LAB_PATIENCE``
    How many times longer than on a machine of its own to wait for what is to happen (1). What is to be expected is the
    same everywhere.
"""

from __future__ import annotations

import os

from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost


def cgroup_driver() -> str:
    """``native.cgroup_driver``."""
    return os.environ.get("LAB_CGROUP_DRIVER", "auto")


def cgroup_host() -> CgroupHost:
    """The host as a forgeoned of the lab's sees it."""
    return cgroups.detect(cgroup_driver())


def patient(seconds: float) -> float:
    """So many seconds, on a machine of its own."""
    return seconds * float(os.environ.get("LAB_PATIENCE", "1"))
