"""What executes guests here: KVM where a guest was seen to boot by it, else QEMU's emulator.

That there is a /dev/kvm proves nothing: within another virtual machine it may be there, and its guests hang.
"""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Final

import msgspec

from engines.microvm.boot import clock, cpio
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.settings import BootSettings
from engines.microvm.vmm.base import Accel
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, syscall_error
from forgeone_shim.kernel import spawn

_KVM: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Seconds in which a guest has to have said its word; where KVM works it takes a third of one.
_PATIENCE: Final = 5.0
# What a guest says that is executed.
WORD: Final = b"forgeone: this guest runs\n"
_ADDRESS: Final = 0x400000


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    accel: Accel
    khz: Annotated[int, msgspec.Meta(ge=0)]
    why: str


@dataclass(frozen=True, slots=True)
class Processor:
    """What executes guests; ``khz`` is the frequency of the host's counter (0 with KVM), ``why`` why it is not KVM."""

    accel: Accel
    khz: int
    why: str = ""


def processor(
    settings: BootSettings, boot: BootSet, root: Path, deadline: Deadline, *, anew: bool = False
) -> Processor:
    """What guests run on here. Found out once for this kernel, this QEMU and this boot of the host, and if ``anew``.

    :raises FailedPrecondition: ``microvm.accel`` is kvm, and it does not work; ``microvm.vmm`` is one that needs it; or
        there is no QEMU.
    """
    if settings.vmm != "qemu":
        # They end at once where it does not work, and say so.
        if settings.accel == Accel.TCG or not _KVM.exists():
            raise FailedPrecondition(f"microvm.vmm is {settings.vmm}, which needs KVM", fix='set it to "qemu"')
        return Processor(Accel.KVM, 0)
    qemu = spawn.find_program(settings.qemu)
    if qemu is None:
        raise FailedPrecondition(f"{settings.qemu} is not installed", fix="apt-get install -y qemu-system-x86")
    path, key = root / "microvm" / "processor.json", _key(settings, boot, qemu)
    known = None if anew else _recall(path, key)
    if known is None:
        known = _look(settings, boot, qemu, key, deadline)
        _keep(path, known)
    if settings.accel == Accel.KVM and known.accel is not Accel.KVM:
        raise FailedPrecondition(f"microvm.accel is kvm, but {known.why}", fix="set it to auto or tcg")
    return Processor(known.accel, known.khz, known.why)


def _look(settings: BootSettings, boot: BootSet, qemu: str, key: str, deadline: Deadline) -> _Known:
    why = "microvm.accel is tcg" if settings.accel == Accel.TCG else _fault(boot, qemu, deadline)
    return _Known(key, Accel.TCG, clock.khz(), why) if why else _Known(key, Accel.KVM, 0, "")


def _fault(boot: BootSet, qemu: str, deadline: Deadline) -> str:
    """Why KVM cannot be used, empty: a guest has run by it."""
    if not _KVM.exists():
        return f"this host has no {_KVM}"
    with tempfile.NamedTemporaryFile(prefix="forgeone-probe-") as initrd:
        initrd.write(cpio.archive((cpio.file("init", program(), 0o755),)))
        initrd.flush()
        argv = (
            *("qemu-system-x86_64", "-M", "microvm,accel=kvm,isa-serial=on", "-cpu", "host", "-m", "128"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-kernel", boot.kernel, "-initrd", initrd.name),
            *("-append", f"{boot.cmdline(Accel.KVM)} console=ttyS0"),
        )
        try:
            with deadline.within(_PATIENCE) as patience:
                done = spawn.run(qemu, argv, patience)
        except DeadlineExceeded:
            deadline.check("looking whether KVM works")
            return f"a guest that was started by {_KVM} did not come to its first process in {_PATIENCE:g} s"
    if WORD.strip() in done.output:
        return ""
    return f"a guest that was started by {_KVM} ended: {done.text[-300:] or f'QEMU exited with {done.code}'}"


def program() -> bytes:
    """A first process for x86-64 that says a word and resets the machine: an ELF header, and nine instructions."""
    start, entry = 64 + 56, _ADDRESS + 64 + 56
    rest = b"".join(
        (
            b"\xba" + struct.pack("<I", len(WORD)),  # mov edx, its length
            b"\x0f\x05",  # syscall
            b"\xb8" + struct.pack("<I", 169),  # mov eax, __NR_reboot
            b"\xbf" + struct.pack("<I", 0xFEE1DEAD),  # mov edi, LINUX_REBOOT_MAGIC1
            b"\xbe" + struct.pack("<I", 672274793),  # mov esi, LINUX_REBOOT_MAGIC2
            b"\xba" + struct.pack("<I", 0x01234567),  # mov edx, LINUX_REBOOT_CMD_RESTART
            b"\x0f\x05",  # syscall
            b"\xeb\xfe",  # jmp to itself
        )
    )
    code = b"".join(
        (
            b"\xb8" + struct.pack("<I", 1),  # mov eax, __NR_write
            b"\xbf" + struct.pack("<I", 1),  # mov edi, standard output
            b"\x48\x8d\x35" + struct.pack("<i", len(rest)),  # lea rsi, [rip + ...]: the word is behind the code
            rest,
        )
    )
    size = start + len(code) + len(WORD)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return header + segment + code + WORD


def _key(settings: BootSettings, boot: BootSet, qemu: str) -> str:
    try:
        with open(qemu, "rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        said = f"{settings.accel} {boot.manifest.kernel.digest} {boot.manifest.cmdline} {digest} {_BOOT_ID.read_text()}"
    except OSError as error:
        raise syscall_error("read", qemu, error) from None
    return sha256(said.encode()).hexdigest()


def _recall(path: Path, key: str) -> _Known | None:
    try:
        known = msgspec.json.decode(path.read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError):
        return None
    return known if known.key == key else None


def _keep(path: Path, known: _Known) -> None:
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(msgspec.json.encode(known))
        made.replace(path)
    except OSError as error:
        raise syscall_error("write", path, error) from None
