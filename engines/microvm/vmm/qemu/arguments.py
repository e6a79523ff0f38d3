"""QEMU's command line (qemu(1)) for a machine: a pure function of it and of numbers of descriptors.

A machine and the clones of a template of it differ in nothing that is in the saved state: the same devices in the same
order, of the same properties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engines.microvm.vmm.base import Accel, Machine

SCSI: Final = "scsi0"
# Disks that are there from the beginning, empty: what is put into one the guest need not find, which takes an emulated
# one a tenth of a second with SCSI. To the guest they are larger than any image, so that no size changes.
SLOTS: Final = 2
_SLOT_SIZE: Final = 1 << 40
# Below this a descriptor is a standard stream.
FIRST_FD: Final = 3
# MiB of translated code at most, so that what QEMU needs beside the guest's memory has a bound. A boot takes 35.
_TRANSLATED: Final = 48
_MEMORY: Final = "m0"
# The guest's string operations are what a translator is slow at when it believes them to be fast.
_CPU: Final = {Accel.TCG: "max,-erms,-fsrm", Accel.KVM: "host"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Numbers, in QEMU's process. -1: there is none. ``ports`` are in the order of the machine's."""

    monitor: int
    tap: int
    ports: tuple[int, ...]
    memory: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Where, in QEMU's file system, a machine begins."""

    kernel: str
    initrd: str


def arguments(program: str, machine: Machine, fds: Descriptors, boot: Boot | None, sandbox: str) -> list[str]:
    """The words, the first of which is the program. Without ``boot`` it waits for a saved state to come.

    In no case does it let the machine run before it is told to. ``sandbox`` is what QEMU's own filter shall do
    (``-sandbox``).
    """
    accel = machine.accel.value
    words = [
        program,
        *("-M", f"microvm,pit=off,isa-serial=off,rtc=on,x-option-roms=off,memory-backend={_MEMORY}"),
        *("-accel", f"{accel},tb-size={_TRANSLATED}" if machine.accel is Accel.TCG else accel),
        *("-cpu", _CPU[machine.accel]),
        *("-smp", str(machine.vcpus)),
        *("-m", f"{machine.memory}B"),
        *("-object", _memory(machine, fds, boot)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-S"),
        *("-display", "none"),
        *("-sandbox", sandbox),
        *("-msg", "timestamp=off"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-chardev", f"socket,id=monitor,fd={fds.monitor}"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-device", f"virtio-serial-device,max_ports={len(machine.ports) + 1}"),
    ]
    for place, (name, fd) in enumerate(zip(machine.ports, fds.ports, strict=True)):
        words += ["-chardev", f"socket,id=port{place},fd={fd}"]
        words += ["-device", f"virtserialport,chardev=port{place},name={name}"]
    # A page that was given back reads as the template has it, or as zeros: a guest whose kernel counts on what it wrote
    # into free pages (init_on_free, page_poison) reports none where poison is not offered.
    reporting = f"free-page-reporting={'on' if machine.reclaim else 'off'},page-poison=off"
    words += [
        *("-netdev", f"tap,id=net0,fd={fds.tap}"),
        *("-device", "virtio-net-device,netdev=net0"),
        *("-device", f"virtio-scsi-device,id={SCSI}"),
        *("-device", "virtio-rng-device"),
        *("-device", f"virtio-balloon-device,id=balloon0,deflate-on-oom=on,{reporting}"),
    ]
    for slot in range(SLOTS):
        words += ["-blockdev", f"null-co,node-name={empty(slot)},size={_SLOT_SIZE},read-zeroes=on,read-only=on"]
        words += ["-blockdev", f"raw,node-name=slot{slot},file={empty(slot)},read-only=on"]
        # By this number the agent knows it.
        words += ["-device", f"virtio-blk-device,drive=slot{slot},serial=forgeone-{slot}"]
    if boot is None:
        return [*words, "-incoming", "defer"]
    return [*words, "-kernel", boot.kernel, "-initrd", boot.initrd, "-append", machine.cmdline]


def empty(slot: int) -> str:
    """The name of the block node that is in a slot which has no disk."""
    return f"empty{slot}"


def _memory(machine: Machine, fds: Descriptors, boot: Boot | None) -> str:
    if fds.memory < 0:
        return f"memory-backend-ram,id={_MEMORY},size={machine.memory}"
    share = "off" if boot is None else "on"
    path = f"/proc/self/fd/{fds.memory}"
    return f"memory-backend-file,id={_MEMORY},size={machine.memory},mem-path={path},share={share}"
