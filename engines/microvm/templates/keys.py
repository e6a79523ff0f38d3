"""Which template a machine can begin from: one that was saved from the very same machine. Pure, but for one look."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from engines.microvm.vmm.base import Accel, Machine

# Another one for each change of what is saved, or of how a driver makes the same machine.
_VERSION: Final = 4
_KHZ: Final = re.compile(r"(?<=\btsc_early_khz=)\d+")
# A clock is measured a little differently each time; another host's differs by more than this.
_STEP_KHZ: Final = 1000
_CPUINFO: Final = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")
_DIGITS: Final = 32


@dataclass(frozen=True, slots=True)
class Key:
    """``generation`` is all that machines have in common but for their sizes; ``name`` is fit for a file."""

    generation: str
    memory: int
    vcpus: int

    @property
    def name(self) -> str:
        """Of the template."""
        return f"{self.generation}-{self.memory >> 20}m-{self.vcpus}"


def key(machine: Machine, *, boot: str, monitor: str, processor: str = "") -> Key:
    """``boot`` is the digest of what it boots, and ``monitor`` says which one, of which version, runs it.

    ``processor`` is :func:`processor` of this host. Where kernel and initrd lie says nothing.
    """
    cmdline = _KHZ.sub(lambda found: str(round(int(found[0]) / _STEP_KHZ)), machine.cmdline)
    said = (_VERSION, boot, monitor, processor, machine.accel, cmdline, machine.ports, machine.reclaim)
    return Key(sha256(repr(said).encode()).hexdigest()[:_DIGITS], machine.memory, machine.vcpus)


def processor(accel: Accel, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What of the host's processor a guest has seen, and must see again; nothing where it sees a translator's."""
    if accel is not Accel.KVM:
        return ""
    first = cpuinfo.read_text().partition("\n\n")[0]
    lines = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    return "\n".join(value.strip() for name, value in lines if name.strip() in _CPUINFO)
