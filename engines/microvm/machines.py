"""What this node's machines are made of: found and checked when the first one is wanted, and cheaply for each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog

from engines.microvm import users
from engines.microvm.boot import assembly, bootset, probe
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.probe import Processor
from engines.microvm.client import Keepers
from engines.microvm.keeper.orders import Driver, Monitor, Save
from engines.microvm.settings import Settings
from engines.microvm.sizing import Size
from engines.microvm.templates import keys
from engines.microvm.templates.keys import Key
from engines.microvm.templates.warm import Templates
from engines.microvm.vmm.base import Confinement, Machine, Template
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, syscall_error
from forgeone_shim.kernel.spawn import find_program, run

# Of the host's memory, for templates.
_SHARE = 16
_PROGRAMS = {
    Driver.QEMU: ("qemu", "apt-get install -y qemu-system-x86"),
    Driver.FIRECRACKER: ("firecracker", ""),
    Driver.CLOUD_HYPERVISOR: ("cloud_hypervisor", ""),
}


class Machines:
    """Thread-safe; what is found out is kept for the daemon's life, the boot set as long as it is as it was."""

    def __init__(self, settings: Settings, root: Path, keepers: Keepers) -> None:
        self._settings, self._root, self._keepers = settings, root, keepers
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._templates = Templates(root / "microvm" / "templates", self._save, _report, most=memory // _SHARE)
        self._lock = threading.Lock()
        self._boot: BootSet | None = None
        self._processors: dict[str, Processor] = {}
        self._version = ("", "")

    def boot(self, deadline: Deadline) -> BootSet:
        """What machines boot now; made, where it is not there yet.

        :raises ForgeError: what is missing for it, or who has not signed it.
        """
        with self._lock:
            if self._boot is not None and self._boot.directory.is_dir():
                self._boot = bootset.check(self._boot, self._settings.boot)
            else:
                # Not yet there, or removed, as one that was changed is to be.
                self._boot = assembly.assemble(self._settings.boot, self._root, deadline)
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
            reclaim=self._settings.reclaim and not self._settings.disk_size,
            disk_max=self._settings.disk_size,
        )

    def _processor(self, boot: BootSet, deadline: Deadline) -> Processor:
        with self._lock:
            if boot.digest not in self._processors:
                found = probe.processor(self._settings.boot, boot, self._root, deadline)
                if found.why:
                    structlog.get_logger("microvm").info("machines are emulated", why=found.why)
                self._processors[boot.digest] = found
            return self._processors[boot.digest]

    def version(self, deadline: Deadline) -> str:
        """What the monitor says of itself, in a line; asked again when it was installed anew."""
        return self._known(deadline)[1]

    def _known(self, deadline: Deadline) -> tuple[str, str]:
        """Which file the monitor is, and its version."""
        monitor = self.monitor()
        try:
            seen = Path(monitor.program).stat()
        except OSError as error:
            raise syscall_error("stat", monitor.program, error) from error
        mark = f"{seen.st_size} {seen.st_mtime_ns}"
        with self._lock:
            known = self._version
        if known[0] != mark:
            said = run(monitor.program, [monitor.program, "--version"], deadline).text
            known = mark, said.partition("\n")[0] or monitor.driver.value
            with self._lock:
                self._version = known
        return known

    @contextlib.contextmanager
    def template(self, machine: Machine, deadline: Deadline) -> Iterator[Template | None]:
        """What the machine may begin from, good within the block; ``None``: it boots, and one is made for the next."""
        if not self._settings.templates or self._settings.vmm != Driver.QEMU:
            yield None
            return
        with self._templates.take(machine, self._key(machine, deadline)) as found:
            yield found

    def spoiled(self, machine: Machine, deadline: Deadline) -> None:
        """No machine can begin from its template: another one is made."""
        self._templates.drop(self._key(machine, deadline))

    def _key(self, machine: Machine, deadline: Deadline) -> Key:
        seen = keys.processor(machine.accel)
        return keys.key(
            machine, boot=self.boot(deadline).digest, monitor=" ".join(self._known(deadline)), processor=seen
        )

    def _save(self, machine: Machine, memory: int, state: int, deadline: Deadline) -> None:
        user = self._settings.uid_base + users.SPARE
        asked = Save(
            name=f"template-{machine.memory >> 20}m-{machine.vcpus}",
            monitor=self.monitor(),
            machine=machine,
            who=Confinement(uid=user, gid=user),
            seconds=self._settings.boot_timeout,
        )
        self._keepers.save(asked, deadline, memory=memory, state=state)

    def close(self) -> None:
        """Let go of templates; machines that began from them go on."""
        self._templates.close()

    def processors(self) -> int:
        """Of the host, as far as this process may use them."""
        return len(os.sched_getaffinity(0))


def _report(name: str, wrong: str) -> None:
    structlog.get_logger("microvm").warning("no template of machines was made", template=name, error=wrong)
