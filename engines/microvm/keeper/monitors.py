"""Which driver a monitor's program has."""

from __future__ import annotations

from engines.microvm.keeper.orders import Driver, Monitor
from engines.microvm.vmm.base import Vmm
from engines.microvm.vmm.qemu.driver import Qemu


def make(monitor: Monitor) -> Vmm:
    """The monitor, not started."""
    if monitor.driver is Driver.QEMU:
        return Qemu(monitor.program)
    # What they are spoken to with is not in each keeper's memory.
    from engines.microvm.vmm.cloud_hypervisor import CloudHypervisor
    from engines.microvm.vmm.firecracker import Firecracker

    return (Firecracker if monitor.driver is Driver.FIRECRACKER else CloudHypervisor)(monitor.program)
