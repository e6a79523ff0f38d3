"""Machines without a kernel for the tests of monitors: a few instructions in an image that boots by PVH."""

from __future__ import annotations

import functools
import os
import signal
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engines.microvm.vmm.base import Accel, Confinement, Machine, Vmm
from forgeone_shim.deadline import Deadline

QEMU: Final = "/usr/bin/qemu-system-x86_64"
MEMORY: Final = 64 << 20
WHO: Final = Confinement(uid=1_900_000_777, gid=1_900_000_777)
PORTS: Final = ("forgeone.control", "forgeone.share")
# Where in its memory a machine counts, and where its code is.
COUNTER: Final = 0x30_0000
_CODE: Final = 0x20_0000
_XEN_PHYS32_ENTRY: Final = 18

# inc dword [COUNTER]; jmp back
COUNTS: Final = b"\xff\x05" + struct.pack("<I", COUNTER) + b"\xeb\xf8"
# hlt; jmp back
SLEEPS: Final = b"\xf4\xeb\xfd"
# lidt of nothing; int3: a fault in a fault in a fault
RESETS: Final = b"\x0f\x01\x1d" + struct.pack("<I", _CODE + 256) + b"\xcc"


def kernel(code: bytes) -> bytes:
    """An ELF image that enters ``code`` in 32-bit protected mode."""
    code = code.ljust(512, b"\0")
    note = struct.pack("<III4sI", 4, 4, _XEN_PHYS32_ENTRY, b"Xen\0", _CODE)
    begin = 64 + 2 * 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, _CODE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, begin + len(note), _CODE, _CODE, len(code), len(code), 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, begin, 0, 0, len(note), len(note), 4)
    return header + load + notes + note + code


def machine(directory: Path, code: bytes, *, disk_max: int = 0) -> Machine:
    """One that executes ``code``, with its files in ``directory``. With ``disk_max`` its memory is not reclaimed."""
    image, initrd = directory / "kernel", directory / "initrd"
    for path, content in ((image, kernel(code)), (initrd, b"none")):
        path.write_bytes(content)
        path.chmod(0o444)
    return Machine(
        memory=MEMORY,
        vcpus=1,
        accel=Accel.TCG,
        kernel=str(image),
        initrd=str(initrd),
        cmdline="quiet",
        ports=PORTS,
        reclaim=not disk_max,
        disk_max=disk_max,
    )


def soon() -> Deadline:
    return Deadline.after(30)


def alone(test: Callable[[], None]) -> None:
    """Run it in a process of one thread, as a keeper is, with no children but its own."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            test()
            assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text(), "a child is left"
        except BaseException:
            os.write(tell, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as said:
        wrong = said.read()
    _, status = os.waitpid(pid, 0)
    assert not wrong and status == 0, wrong or f"ended with {status}"


def like_a_keeper(test: Callable[..., None]) -> Callable[..., None]:
    """A test that runs :func:`alone`, and stops its ``monitor`` in the end, which may be done twice."""

    @functools.wraps(test)
    def run(*, monitor: Vmm, **given: object) -> None:
        def whole() -> None:
            try:
                test(monitor=monitor, **given)
            finally:
                monitor.stop()
                monitor.stop()

        alone(whole)

    return run
