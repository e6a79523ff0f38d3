"""How large a pod's machine is: memory in classes, so that machines of few sizes can share templates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition

_MIB: Final = 1 << 20
LEAST: Final = 128 * _MIB
_FINE: Final = 64 * _MIB
_COARSE: Final = 256 * _MIB
_FINE_UP_TO: Final = 512 * _MIB
# What the monitor, the keeper and the file server have besides the guest's memory.
AROUND: Final = 80 * _MIB
# The guest's kernel keeps 64 bytes of each page of 4096 (struct page).
_PAGES: Final = 64
_PERIOD: Final = 100_000


@dataclass(frozen=True, slots=True)
class Size:
    """Of a machine: bytes of memory, and virtual processors."""

    memory: int
    vcpus: int


def size(asked: Resources, *, default: int, overhead: int, host_limit: int, vcpus_max: int, processors: int) -> Size:
    """For a pod whose containers may have ``asked`` altogether; ``default`` bytes are for those without a limit.

    ``overhead`` is what the guest's kernel needs, and ``host_limit`` what the pod's control group may have on the host,
    0 for no limit: the machine has to fit in there as it is. A kubelet sets one where every container has a limit.

    :raises FailedPrecondition: it cannot.
    """
    used = max(asked.memory_limit, 0)
    if not (used and host_limit):
        used += default
    wanted = _class(max(used + used // _PAGES + overhead, LEAST))
    if host_limit and wanted + AROUND > host_limit:
        # A coarser step would cost a pod a part of its limit.
        wanted = (host_limit - AROUND) // _FINE * _FINE
        if wanted < LEAST:
            needed = (LEAST + AROUND) // _MIB
            raise FailedPrecondition(
                f"the pod's control group may have {host_limit // _MIB} MiB, and a machine needs {needed} MiB",
                fix=f"give the pod a RuntimeClass with an overhead of {(overhead + AROUND + _FINE) // _MIB}Mi",
            )
    return Size(wanted, _vcpus(asked, min(vcpus_max or processors, processors)))


def _class(memory: int) -> int:
    step = _FINE if memory <= _FINE_UP_TO else _COARSE
    return -(-memory // step) * step


def _vcpus(asked: Resources, most: int) -> int:
    return max(1, min(most, cpus(asked)))


def cpus(asked: Resources) -> int:
    """As many as the limit says, rounded up; 0 without one."""
    return -(-asked.cpu_quota // (asked.cpu_period or _PERIOD)) if asked.cpu_quota > 0 else 0
