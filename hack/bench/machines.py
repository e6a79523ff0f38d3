#!/usr/bin/env python3
"""What virtual machines take: milliseconds until their agent answers, and memory.

    python -m hack.bench.machines --kernel linux-image.deb --rounds 7 --clones 10

*bare* is a QEMU that nobody confines, without a device but a serial line, until the same kernel's first process says a
word there. *cold* is a machine as pods have it, until its agent answers; *clone* is one that begins from a template.
Beside the time is that of processors which the monitor took: on a busy host it says more.

Needs root. What it makes is in a directory of its own, which is removed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engines.microvm.boot import assembly, clock, cpio, probe
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.settings import BootSettings
from engines.microvm.templates.warm import save
from engines.microvm.vmm.base import Accel, Confinement, Machine, Template
from engines.microvm.vmm.qemu.driver import Qemu
from engines.microvm.wire import fields, frames
from engines.microvm.wire.frames import Receiver, Side
from engines.microvm.wire.messages import Hello
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT, VERSION, Kind
from forgeone_shim.deadline import Deadline

_QEMU = "qemu-system-x86_64"
_WHO = Confinement(uid=1_900_000_555, gid=1_900_000_555)
_SECONDS = 60.0
_DISK = 64 << 20

# Milliseconds: of waiting, and of processors.
_Taken = tuple[float, float]


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="as microvm.kernel; default: as forgeoned finds it")
    parser.add_argument("--accel", choices=[one.value for one in Accel], default=Accel.TCG.value)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clones", type=int, default=10, help="at once, for the memory that they take")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="forgeone-bench-") as directory:
        boot = assembly.assemble(BootSettings(kernel=options.kernel), Path(directory), soon())
        accel = Accel(options.accel)
        machine = Machine(
            memory=options.memory << 20,
            vcpus=1,
            accel=accel,
            kernel=boot.kernel,
            initrd=boot.initrd,
            cmdline=boot.cmdline(accel, clock.khz() if accel is Accel.TCG else 0),
            ports=(CONTROL_PORT, SHARE_PORT),
        )
        _run(options, machine, boot, Path(directory))
    return 0


def _run(options: argparse.Namespace, machine: Machine, boot: BootSet, directory: Path) -> None:
    alone = _report("bare", options.rounds, lambda: bare(machine, boot, directory))
    cold = _report("cold", options.rounds, lambda: answers(machine))
    begin = time.monotonic()
    template = save(machine, lambda memory, state: _build(machine, memory, state))
    built, size = _ms(begin), os.fstat(template.memory).st_blocks * 512
    print(
        f"template  {built:7.0f} ms to build; {size >> 20} MiB, {os.fstat(template.state).st_size >> 10} KiB of state"
    )
    clone = _report("clone", options.rounds, lambda: answers(machine, template))
    for name, place in (("time", 0), ("processor's time", 1)):
        print(f"of the {name} of bare: cold {cold[place] / alone[place]:.2f}, clone {clone[place] / alone[place]:.3f}")
    _disks(machine, template, directory, options.rounds)
    _memory(machine, template, options.clones)


def _report(name: str, rounds: int, once: Callable[[], _Taken]) -> _Taken:
    taken = [once() for _ in range(rounds)]
    times, ran = zip(*taken, strict=True)
    middle = statistics.median(times), statistics.median(ran)
    print(f"{name:9} {middle[0]:7.0f} ms ({min(times):.0f} to {max(times):.0f}), of a processor {middle[1]:.0f} ms")
    return middle


def bare(machine: Machine, boot: BootSet, directory: Path) -> _Taken:
    initrd = directory / "bare"
    initrd.write_bytes(cpio.archive((cpio.file("init", probe.program(), 0o755),)))
    words = [
        *(_QEMU, "-M", f"microvm,accel={machine.accel.value},isa-serial=on,pit=off,x-option-roms=off"),
        *("-cpu", "host" if machine.accel is Accel.KVM else "max,-erms,-fsrm", "-m", f"{machine.memory}B"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", boot.kernel, "-initrd", str(initrd), "-append", f"{machine.cmdline} console=ttyS0"),
    ]
    begin = time.monotonic()
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        # What the kernel has to complain of comes before.
        said = next((line for line in qemu.stdout if probe.WORD.strip() in line), b"")
        taken = _ms(begin), _ran(qemu.pid)
        qemu.kill()
    if not said:
        raise SystemExit("the kernel did not come to its first process")
    return taken


def answers(machine: Machine, template: Template | None = None) -> _Taken:
    begin = time.monotonic()
    with _running(machine, template) as (qemu, control):
        _ask(control, Kind.HELLO, fields.encode(Hello(version=VERSION)))
        return _ms(begin), _ran(qemu.pid)


def _build(machine: Machine, memory: int, state: int) -> None:
    with _running(machine, memory=memory) as (qemu, control):
        _ask(control, Kind.HELLO, fields.encode(Hello(version=VERSION)))
        _ask(control, Kind.QUIESCE, b"")
        qemu.pause(soon())
        qemu.snapshot(state, soon())


def _disks(machine: Machine, template: Template, directory: Path, rounds: int) -> None:
    image = directory / "disk"
    image.touch()
    os.truncate(image, _DISK)
    with _running(machine, template) as (qemu, control), open(image, "rb") as disk:
        _ask(control, Kind.HELLO, fields.encode(Hello(version=VERSION)))

        def plug() -> float:
            begin = time.monotonic()
            qemu.add_disk(1, disk.fileno(), readonly=True, deadline=soon())
            return _ms(begin)

        def unplug() -> float:
            begin = time.monotonic()
            qemu.remove_disk(1, soon())
            return _ms(begin)

        times = [(plug(), unplug()) for _ in range(rounds)]
    for name, values in zip(("plug", "unplug"), zip(*times, strict=True), strict=True):
        print(f"{name:9} {statistics.median(values):7.1f} ms, as the monitor says")


def _memory(machine: Machine, template: Template, clones: int) -> None:
    with ExitStack() as stack:
        qemus = []
        begin = time.monotonic()
        for _ in range(clones):
            qemu, control = stack.enter_context(_running(machine, template))
            _ask(control, Kind.HELLO, fields.encode(Hello(version=VERSION)))
            qemus.append(qemu)
        taken = _ms(begin)
        found = [_pss(qemu.pid) for qemu in qemus]
    each = statistics.mean(kib for kib, _ in found) / 1024
    anonymous = statistics.mean(kib for _, kib in found) / 1024
    print(f"{clones} clones one after the other {taken:.0f} ms; Pss {each:.1f} MiB each, {anonymous:.1f} of it private")


def _pss(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return values["Pss"], values["Pss_Anon"]


@contextmanager
def _running(
    machine: Machine, template: Template | None = None, *, memory: int = -1
) -> Iterator[tuple[Qemu, socket.socket]]:
    qemu = Qemu(f"/usr/bin/{_QEMU}")
    with ExitStack() as stack:
        stack.callback(qemu.stop)
        qemu.start(machine, -1, _WHO, soon(), template, memory=memory)
        channels = qemu.channels()
        for channel in channels.values():
            stack.enter_context(channel)
        yield qemu, channels[CONTROL_PORT]


def _ask(control: socket.socket, kind: Kind, payload: bytes) -> None:
    """Wait for the answer to a request."""
    control.settimeout(_SECONDS)
    control.sendall(frames.frame(kind, 1, payload))
    receiver = Receiver(Side.AGENT)
    while True:
        size = control.recv_into(receiver.space())
        if not size:
            raise SystemExit("the machine has ended")
        for frame in receiver.received(size):
            if frame.kind is Kind.REPLY:
                return
            if frame.kind is Kind.FAILED:
                raise SystemExit(f"the agent refuses {kind.name}")


def _ran(pid: int) -> float:
    """Milliseconds of processors that it had."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def soon() -> Deadline:
    return Deadline.after(_SECONDS)


def _ms(begin: float) -> float:
    return (time.monotonic() - begin) * 1000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
