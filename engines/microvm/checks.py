"""What this host lacks for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engines.base import Problem
from engines.microvm.boot import problems as boot
from engines.microvm.images import cache, writable
from engines.microvm.settings import Settings
from forgeone_shim.kernel.spawn import find_program

_WHY: Final = "no pod can have a machine of its own without it"
_TUN: Final = Path("/dev/net/tun")


def problems(settings: Settings) -> list[Problem]:
    """In the order in which they are best mended; none of them is in the way of other engines."""
    found = [*boot.problems(settings.boot)]
    if find_program(cache.PROGRAM) is None:
        found.append(Problem(f"{cache.PROGRAM} is not installed", _WHY, "apt-get install erofs-utils"))
    if settings.writable_layer == "disk" and find_program(writable.PROGRAM) is None:
        why = 'microvm.writable_layer is "disk", and no container can be made'
        found.append(Problem(f"{writable.PROGRAM} is not installed", why, "apt-get install e2fsprogs"))
    if not _TUN.exists():
        found.append(Problem(f"{_TUN} is not there", _WHY, "modprobe tun"))
    return found
