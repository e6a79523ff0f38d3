"""What this node's machines are made of: found and checked when the first one is wanted, and cheaply for each."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from engines.microvm.boot import assembly, bootset, probe
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.probe import Processor
from engines.microvm.keeper.orders import Driver, Monitor
from engines.microvm.settings import Settings
from engines.microvm.sizing import Size
from engines.microvm.vmm.base import Machine
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel.spawn import find_program, run

_PROGRAMS = {
    Driver.QEMU: ("qemu", "apt-get install qemu-system-x86"),
    Driver.FIRECRACKER: ("firecracker", ""),
    Driver.CLOUD_HYPERVISOR: ("cloud_hypervisor", ""),
}


class Machines:
    """Thread-safe; what is found out is kept for the daemon's life, the boot set as long as it is as it was."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self._settings, self._root = settings, root
        self._lock = threading.Lock()
        self._boot: BootSet | None = None
        self._processors: dict[str, Processor] = {}
        self._version = ""

    def boot(self, deadline: Deadline) -> BootSet:
        """What machines boot now; made, where it is not there yet.

        :raises ForgeError: what is missing for it, or who has not signed it.
        """
        with self._lock:
            if self._boot is None:
                self._boot = assembly.assemble(self._settings.boot, self._root, deadline)
            else:
                self._boot = bootset.check(self._boot, self._settings.boot)
            return self._boot

    def monitor(self) -> Monitor:
        """:raises FailedPrecondition: the monitor is not installed."""
        driver = Driver(self._settings.vmm)
        key, fix = _PROGRAMS[driver]
        name = self._settings.boot.qemu if driver is Driver.QEMU else getattr(self._settings, key)
        program = find_program(name)
        if program is None:
            raise FailedPrecondition(f"{name} is not installed", fix=fix or f"set microvm.{key}")
        return Monitor(driver=driver, program=program)

    def machine(self, size: Size, deadline: Deadline) -> Machine:
        """One of that size. Errors as :meth:`boot` and :meth:`monitor`."""
        boot = self.boot(deadline)
        executed = self._processor(boot, deadline)
        return Machine(
            memory=size.memory,
            vcpus=size.vcpus,
            accel=executed.accel,
            kernel=boot.kernel,
            initrd=boot.initrd,
            cmdline=boot.cmdline(executed.accel, executed.khz),
            ports=(CONTROL_PORT, SHARE_PORT),
            reclaim=self._settings.reclaim and self._settings.writable_layer == "memory",
        )

    def _processor(self, boot: BootSet, deadline: Deadline) -> Processor:
        with self._lock:
            if boot.digest not in self._processors:
                self._processors[boot.digest] = probe.processor(self._settings.boot, boot, self._root, deadline)
            return self._processors[boot.digest]

    def version(self, deadline: Deadline) -> str:
        """What the monitor says of itself, in a line."""
        if not self._version:
            monitor = self.monitor()
            said = run(monitor.program, [monitor.program, "--version"], deadline).text
            self._version = said.partition("\n")[0] or monitor.driver.value
        return self._version

    def processors(self) -> int:
        """Of the host, as far as this process may use them."""
        return len(os.sched_getaffinity(0))
