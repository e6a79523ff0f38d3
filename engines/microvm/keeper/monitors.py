"""Which driver a monitor's program has."""

from __future__ import annotations

from engines.microvm.keeper.orders import Driver, Monitor
from engines.microvm.vmm.base import Vmm
from engines.microvm.vmm.qemu.driver import Qemu
from forgeone_shim.errors import Unavailable


def make(monitor: Monitor) -> Vmm:
    """The monitor, not started.

    :raises Unavailable: there is no driver for it.
    """
    if monitor.driver is Driver.QEMU:
        return Qemu(monitor.program)
    raise Unavailable(f"there is no driver for {monitor.driver.value}")
