"""What is systemd's of a container."""

from __future__ import annotations

import pytest

from engines.native import scope
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.limits import scope as counts


@pytest.mark.parametrize("mode", list(Mode))
def test_crun_has_orders_where_systemd_makes_the_cgroups(mode: Mode) -> None:
    assert scope.orders(CgroupHost(mode=mode, driver=Driver.CGROUPFS)) == {}
    found = scope.orders(CgroupHost(mode=mode, driver=Driver.SYSTEMD))
    assert found["run.oci.systemd.subgroup"] == ("container" if mode is Mode.V2 else "")
    assert found["org.systemd.property.TasksMax"] == f"uint64 {2**64 - 1}"


@pytest.mark.parametrize("driver", list(Driver))
def test_a_cgroup_that_is_gone_is_neither_held_nor_let_go(driver: Driver) -> None:
    host = CgroupHost(mode=Mode.V2, driver=driver, unified="/nonexistent")
    counts.hold(host, "a.slice:forgeone:c")
    counts.release(host, "a.slice:forgeone:c")
