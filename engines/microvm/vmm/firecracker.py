"""Firecracker behind the line of :mod:`engines.microvm.vmm.base`, by its API (``firecracker.yaml``, 1.17).

Never run against a real Firecracker here, but against a double that holds to its interface's description.

It takes files and interfaces by their names. So its disks are there from the beginning, empty, and a file is put into
one of them when the machine wants it; and it runs in the pod's network namespace, where its interface is.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack
from socket import socket
from typing import Final

from engines.microvm.vmm.base import Confinement, Event, Machine, Template
from engines.microvm.vmm.hosted import API, CID, FILTER, INITRD, KERNEL, VSOCK, Hosted, Launch, place_path
from engines.microvm.vmm.launch import Program, execute
from engines.microvm.vmm.view import View, step
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput

# It has 19 interrupts for devices: two are for its own clock and generation, four for the others of ours.
DISKS: Final = 13
_EMPTY: Final = "empty"
_SECTOR: Final = 512
# linux/if_tun.h
_TUNGETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNGETDEVNETNS = 0x800454D2, 0x400454CB, 0x400454CC, 0x54E3
_TUN: Final = os.makedev(10, 200)
_IFREQ: Final = struct.Struct("16sH22x")
_VCPUS_MAX: Final = 32


class Firecracker:
    """Implements :class:`engines.microvm.vmm.base.Vmm`. ``program`` is the path of ``firecracker``.

    The descriptor that is handed to :meth:`start` as ``tap`` leads nowhere afterwards: an interface has one owner.
    """

    def __init__(self, program: str, launch: Launch = execute) -> None:
        self._program = program
        self._hosted = Hosted("Firecracker", launch)
        self._disks: set[int] = set()

    @property
    def pid(self) -> int:
        """As the interface says."""
        return self._hosted.pid

    @property
    def fds(self) -> tuple[int, ...]:
        """As the interface says."""
        return self._hosted.fds

    @property
    def luns(self) -> int:
        """As the interface says."""
        return DISKS

    @property
    def slots(self) -> int:
        """As the interface says."""
        return 0

    def start(
        self,
        machine: Machine,
        tap: int,
        who: Confinement,
        deadline: Deadline,
        template: Template | None = None,
        *,
        memory: int = -1,
    ) -> None:
        """As the interface says. Without a ``tap`` the machine has no interface."""
        hosted = self._hosted
        hosted.check(machine, template, memory)
        if machine.vcpus > _VCPUS_MAX:
            raise InvalidInput("vcpus", f"{machine.vcpus} is more than the {_VCPUS_MAX} of Firecracker's machines")
        with ExitStack() as undo:
            undo.callback(hosted.stop)
            place = hosted.prepare(who)
            empty = place.fill(_EMPTY, bytes(_SECTOR))
            with ExitStack() as theirs:
                network, interface = _given(tap, who, theirs) if tap >= 0 else (-1, "")
                program = Program(
                    path=self._program,
                    argv=("firecracker", "--id", "forgeone", "--api-sock", place_path(API)),
                    fds={},
                    view=View(
                        files={"kernel": machine.kernel, "initrd": machine.initrd},
                        kvm=True,
                        devices={"net/tun": _TUN},
                        place=place.tree,
                    ),
                    filter=FILTER,
                    network=network,
                )
                hosted.execute(program, who, deadline)
            place.await_socket(API, hosted.process, deadline)
            for path, body in requests(machine, interface, empty):
                hosted.rest.put(path, body, deadline)
            hosted.run(machine.ports, who, lambda: self._begin(deadline), deadline)
            undo.pop_all()

    def _begin(self, deadline: Deadline) -> None:
        self._hosted.rest.put("/actions", {"action_type": "InstanceStart"}, deadline)
        self._hosted.process.blind()

    def channels(self) -> dict[str, socket]:
        """As the interface says."""
        return self._hosted.channels()

    def add_disk(self, lun: int, image: int, *, readonly: bool, deadline: Deadline) -> None:
        """As the interface says; nothing can be written to."""
        if not 0 <= lun < DISKS:
            raise InvalidInput("lun", f"{lun} is not between 0 and {DISKS - 1}, and Firecracker adds no further disk")
        if not readonly:
            raise FailedPrecondition("Firecracker's machines have no disk to write to", fix=_LAYERS)
        if lun in self._disks:
            raise InternalError(f"there is a disk {lun} in this machine")
        hosted, name = self._hosted, f"disk{lun}"
        with ExitStack() as undo:
            path = hosted.place.show(name, image, hosted.process)
            undo.callback(hosted.place.hide, name, hosted.process)
            hosted.rest.patch(f"/drives/{name}", {"drive_id": name, "path_on_host": path}, deadline)
            undo.pop_all()
        self._disks.add(lun)

    def remove_disk(self, lun: int, deadline: Deadline) -> None:
        """As the interface says."""
        if lun not in self._disks:
            return
        hosted, name = self._hosted, f"disk{lun}"
        hosted.rest.patch(f"/drives/{name}", {"drive_id": name, "path_on_host": place_path(_EMPTY)}, deadline)
        hosted.place.hide(name, hosted.process)
        self._disks.discard(lun)

    def pause(self, deadline: Deadline) -> None:
        """As the interface says."""
        self._hosted.rest.patch("/vm", {"state": "Paused"}, deadline)

    def resume(self, deadline: Deadline) -> None:
        """As the interface says."""
        self._hosted.rest.patch("/vm", {"state": "Resumed"}, deadline)

    def snapshot(self, state: int, deadline: Deadline) -> None:  # noqa: ARG002 -- of the interface
        """:raises FailedPrecondition: always: its machines do not begin from templates."""
        raise FailedPrecondition("machines of Firecracker are not saved")

    def events(self) -> list[Event]:
        """As the interface says. Firecracker ends when its guest does, however that was."""
        return self._hosted.ended()

    def stop(self) -> None:
        """As the interface says."""
        self._hosted.stop()


_LAYERS: Final = 'set microvm.writable_layer to "memory"'


def requests(machine: Machine, interface: str, empty: str) -> list[tuple[str, dict[str, object]]]:
    """What is asked for before the machine is started, in its order: paths and bodies."""
    # One, or an even number.
    vcpus = machine.vcpus + (machine.vcpus % 2 if machine.vcpus > 1 else 0)
    made: list[tuple[str, dict[str, object]]] = [
        ("/machine-config", {"vcpu_count": vcpus, "mem_size_mib": machine.memory >> 20, "smt": False}),
        ("/boot-source", {"kernel_image_path": KERNEL, "initrd_path": INITRD, "boot_args": machine.cmdline}),
        ("/entropy", {}),
        ("/vsock", {"guest_cid": CID, "uds_path": place_path(VSOCK)}),
        ("/balloon", {"amount_mib": 0, "deflate_on_oom": True, "free_page_reporting": machine.reclaim}),
    ]
    for lun in range(DISKS):
        drive = {"drive_id": f"disk{lun}", "path_on_host": empty, "is_root_device": False, "is_read_only": True}
        made.append((f"/drives/disk{lun}", drive))
    if interface:
        made.append(("/network-interfaces/net0", {"iface_id": "net0", "host_dev_name": interface}))
    return made


def _given(tap: int, who: Confinement, theirs: ExitStack) -> tuple[int, str]:
    """Make an interface the monitor's, to be opened by its name: a descriptor of its namespace, and the name."""
    with step("ioctl", "the interface"):
        name = _IFREQ.unpack(fcntl.ioctl(tap, _TUNGETIFF, bytes(_IFREQ.size)))[0].rstrip(b"\0").decode()
        network = fcntl.ioctl(tap, _TUNGETDEVNETNS)
        theirs.callback(os.close, network)
        fcntl.ioctl(tap, _TUNSETOWNER, who.uid)
        # It stays when nobody has it open, until its namespace goes with the pod.
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, tap, inheritable=False)
        finally:
            os.close(null)
    return network, name
