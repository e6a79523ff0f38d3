"""The machine: QEMU with two disks, a console, and two ports through which the guest tells how it goes and went."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_QEMU = "qemu-system-x86_64"
_NICE = 5
_PROBE_SECONDS = 20.0
_END_SECONDS = 30.0
_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What QEMU is given. The root disk is never written to; ``result`` is what the guest says at its end."""

    accelerator: str
    kernel: Path
    initrd: Path
    root: Path
    project: Path
    console: Path
    result: Path
    memory_mib: int = 3072
    processors: int = 2


def tests(machine: Machine) -> list[str]:
    """QEMU's command line: the guest's report is QEMU's standard output."""
    ports = ["-device", "virtio-serial-pci"]
    # Not QEMU's "stdio": that is closed when standard input ends.
    for name, path in (("report", "/dev/stdout"), ("result", machine.result)):
        ports += ["-chardev", f"file,path={path},id={name}", "-device", f"virtserialport,chardev={name},name={name}"]
    return [*_common(machine), "-serial", f"file:{machine.console}", *ports]


def shell(machine: Machine) -> list[str]:
    """QEMU's command line: the console is this terminal's. Ctrl-a x ends it."""
    return [*_common(machine), "-serial", "mon:stdio"]


def _common(machine: Machine) -> list[str]:
    words = [_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-M", "q35", "-accel", machine.accelerator, "-cpu", "max", "-m", str(machine.memory_mib)]
    words += ["-smp", str(machine.processors), "-device", "virtio-rng-pci"]
    for path, options in ((machine.root, "snapshot=on"), (machine.project, "cache=unsafe")):
        words += ["-drive", f"file={path},if=virtio,format=raw,{options}"]
    words += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", _COMMAND_LINE]
    return words


def missing() -> list[str]:
    """Programs that are not installed, by Debian's package."""
    needed = {
        _QEMU: "qemu-system-x86",
        "debootstrap": "debootstrap",
        "mkfs.ext4": "e2fsprogs",
        "git": "git",
    }
    return [package for program, package in needed.items() if shutil.which(program) is None]


def accelerator(kernel: Path, directory: Path) -> str:
    """``kvm`` where a guest's kernel gets going with it, else ``tcg,thread=multi``; asked once per boot of this host.

    That ``/dev/kvm`` can be opened says little: nested in some hosts, a guest then hangs at its first instructions.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = directory / f"kvm-{boot}"
    if not note.exists():
        for old in directory.glob("kvm-*"):
            old.unlink()
        note.write_text("yes" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots_with_kvm(kernel) else "no")
    return "kvm" if note.read_text() == "yes" else "tcg,thread=multi"


def _boots_with_kvm(kernel: Path) -> bool:
    """A kernel without a root panics, and with ``panic=-1`` ends QEMU."""
    words = [_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35", "-accel", "kvm"]
    words += ["-cpu", "host", "-m", "256", "-kernel", str(kernel), "-append", "panic=-1"]
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run(words: Sequence[str], *, silence: float, limit: float, show: Callable[[bytes], None]) -> None:
    """Run QEMU to its end and pass on what the guest reports; QEMU ends with this call, however that ends.

    :param silence: seconds without a word after which the guest is given up.
    :param limit: seconds after which it is given up in any case.
    :raises TimeoutError: it was.
    """
    until = time.monotonic() + limit
    process = subprocess.Popen(
        ["nice", "-n", str(_NICE), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    try:
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the guest was not done after {limit / 60:.0f} minutes")
            if not poll.poll(min(silence, left) * 1000):
                if silence < left:
                    raise TimeoutError(f"the guest has said nothing for {silence / 60:.0f} minutes")
                continue
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            show(data)
        code = process.wait(_END_SECONDS)
        if code:
            raise RuntimeError(f"{_QEMU} ended with {code}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def interactive(words: Sequence[str]) -> int:
    """Run QEMU on this terminal."""
    sys.stderr.write("guest: ends with poweroff, or Ctrl-a x\n")
    return subprocess.run(["nice", "-n", str(_NICE), *words], check=False).returncode
