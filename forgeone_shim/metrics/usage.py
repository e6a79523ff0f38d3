"""What a container uses, read from its control groups (v1, hybrid and v2). Reading is thin, the meaning is pure.

https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# v1 has no word for "no limit": it shows the largest number of pages a counter holds, in bytes.
_NO_LIMIT = 2**60
_MICROSECOND = 1000

Read = Callable[[str], str]
"""The text of a file of a cgroup, ``""`` where this kernel or hierarchy has no such file."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """A line of a pressure file: the share of time waited, in percent, and the sum in nanoseconds."""

    avg10: float
    avg60: float
    avg300: float
    total: int


@dataclass(frozen=True, slots=True)
class Stall:
    """How long some, and all, of a cgroup's tasks waited for a resource."""

    some: Pressure
    full: Pressure


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One reading at ``at`` (ns since the epoch): bytes, nanoseconds, counts; ``None`` where the kernel is silent."""

    at: int
    cpu: int | None = None
    memory: int | None = None
    working_set: int | None = None
    available: int | None = None
    rss: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    swap: int | None = None
    swap_available: int | None = None
    cpu_stall: Stall | None = None
    memory_stall: Stall | None = None
    io_stall: Stall | None = None


def of_process(pid: int, container_id: str, mounts: Mapping[str, str], unified: str) -> Usage:
    """The usage of the container whose first process is ``pid``.

    :param mounts: v1 controllers and where each is mounted; empty on a v2 host.
    :param unified: the mount of the v2 hierarchy, or empty.
    """
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Usage(at=time.time_ns())
    paths = memberships(text, container_id)

    def reader(controller: str) -> Read:
        mount = mounts.get(controller, "")
        directory = mount + paths.get(controller, "") if mount else unified + paths.get("", "")
        return lambda name: _text(f"{directory}/{name}")

    if "memory" in mounts:
        return from_v1(time.time_ns(), reader("cpuacct"), reader("memory"))
    return from_v2(time.time_ns(), reader(""))


def _text(path: str) -> str:
    # Beside a missing file: some cgroup files exist but cannot be read (EOPNOTSUPP for pressure that is off).
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def memberships(text: str, container_id: str) -> dict[str, str]:
    """Controller (``""`` for v2) -> cgroup, from ``/proc/PID/cgroup``.

    A container may have moved its first process into a cgroup below its own: the path ends at the container's.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = _own(path, container_id)
    return found


def _own(path: str, container_id: str) -> str:
    parts = path.split("/")
    for depth, part in enumerate(parts):
        if container_id in part:
            return "/".join(parts[: depth + 1])
    return path.rstrip("/")


def from_v2(at: int, read: Read) -> Usage:
    """The meaning of the files of a v2 cgroup."""
    cpu, memory = table(read("cpu.stat")), table(read("memory.stat"))
    current = number(read("memory.current"))
    working_set = _less(current, memory.get("inactive_file", 0))
    swap, usec = number(read("memory.swap.current")), cpu.get("usage_usec")
    return Usage(
        at=at,
        cpu=None if usec is None else usec * _MICROSECOND,
        memory=current,
        working_set=working_set,
        available=_left(number(read("memory.max")), working_set),
        rss=memory.get("anon"),
        page_faults=memory.get("pgfault"),
        major_page_faults=memory.get("pgmajfault"),
        swap=swap,
        swap_available=_left(number(read("memory.swap.max")), swap),
        cpu_stall=stall(read("cpu.pressure")),
        memory_stall=stall(read("memory.pressure")),
        io_stall=stall(read("io.pressure")),
    )


def from_v1(at: int, cpuacct: Read, memory: Read) -> Usage:
    """The meaning of the files of v1's cpuacct and memory controllers."""
    stat, current = table(memory("memory.stat")), number(memory("memory.usage_in_bytes"))
    working_set = _less(current, stat.get("total_inactive_file", 0))
    # v1 counts swap only together with memory.
    both = number(memory("memory.memsw.usage_in_bytes"))
    limit, limit_of_both = number(memory("memory.limit_in_bytes")), number(memory("memory.memsw.limit_in_bytes"))
    swap = stat.get("total_swap") if both is not None else None
    bounded = limit is not None and limit_of_both is not None and limit_of_both < _NO_LIMIT
    swap_limit = limit_of_both - limit if bounded and limit is not None and limit_of_both is not None else None
    return Usage(
        at=at,
        cpu=number(cpuacct("cpuacct.usage")),
        memory=current,
        working_set=working_set,
        available=_left(limit, working_set),
        rss=stat.get("total_rss"),
        page_faults=stat.get("total_pgfault"),
        major_page_faults=stat.get("total_pgmajfault"),
        swap=swap,
        swap_available=_left(swap_limit, swap),
    )


def _less(whole: int | None, part: int) -> int | None:
    return None if whole is None else max(0, whole - part)


def _left(limit: int | None, used: int | None) -> int | None:
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    return max(0, limit - used)


def number(text: str) -> int | None:
    """A file of one number; ``None`` for ``max`` and for nothing."""
    stripped = text.strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else None


def table(text: str) -> dict[str, int]:
    """A file of ``key value`` lines."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()}


def stall(text: str) -> Stall | None:
    """A pressure file (docs.kernel.org/accounting/psi.html); the CPU's has no ``full`` line before Linux 5.13."""
    lines = {line.split(" ", 1)[0]: line for line in text.splitlines()}
    if "some" not in lines:
        return None
    nothing = Pressure(0.0, 0.0, 0.0, 0)
    return Stall(_pressure(lines["some"]), _pressure(lines["full"]) if "full" in lines else nothing)


def _pressure(line: str) -> Pressure:
    fields = dict(pair.split("=", 1) for pair in line.split()[1:])
    return Pressure(
        float(fields["avg10"]), float(fields["avg60"]), float(fields["avg300"]), int(fields["total"]) * _MICROSECOND
    )
