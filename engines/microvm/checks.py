"""What this host lacks for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engines.base import Problem
from engines.microvm.boot import problems as boot
from engines.microvm.images import cache, writable
from engines.microvm.settings import Settings
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.spawn import find_program

_WHY: Final = "no pod can have a machine of its own without it"
_TUN: Final = Path("/dev/net/tun")
_KVM: Final = Path("/dev/kvm")


def problems(settings: Settings) -> list[Problem]:
    """In the order in which they are best mended; none of them is in the way of other engines."""
    found = [*boot.problems(settings.boot), *_monitor(settings)]
    if find_program(cache.PROGRAM) is None:
        found.append(
            Problem(
                f"{cache.PROGRAM} is not installed", _WHY, "apt-get install -y erofs-utils", fatal=False, unusable=True
            )
        )
    if settings.writable_layer == "disk" and find_program(writable.PROGRAM) is None:
        why = 'microvm.writable_layer is "disk", and no container can be made'
        found.append(
            Problem(
                f"{writable.PROGRAM} is not installed", why, "apt-get install -y e2fsprogs", fatal=False, unusable=True
            )
        )
    if not Compiler().usable:
        why = "a pod's keeper and the file server of its volumes run under filters of system calls only"
        found.append(
            Problem("libseccomp cannot be loaded", why, "apt-get install -y libseccomp2", fatal=False, unusable=True)
        )
    if not _TUN.exists():
        found.append(Problem(f"{_TUN} is not there", _WHY, "modprobe tun", fatal=False, unusable=True))
    return found


def _monitor(settings: Settings) -> list[Problem]:
    """Of one that is not QEMU."""
    if settings.vmm == "qemu":
        return []
    program = settings.firecracker if settings.vmm == "firecracker" else settings.cloud_hypervisor
    found = []
    if find_program(program) is None:
        found.append(
            Problem(f"{program} is not installed", _WHY, 'or set microvm.vmm to "qemu"', fatal=False, unusable=True)
        )
    if not _KVM.exists():
        found.append(
            Problem(f"{_KVM} is not there", f"{settings.vmm} needs it", "modprobe kvm", fatal=False, unusable=True)
        )
    what = f"ForgeOne was never run with a real {settings.vmm}"
    why = "its driver is tested with a double that holds to the description of its interface"
    return [*found, Problem(what, why, fatal=False)]
