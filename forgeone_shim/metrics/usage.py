"""What a container uses, read from its control groups (v1, hybrid and v2). Reading is thin, the meaning is pure.

https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forgeone_shim.kernel.cgroups import CgroupHost, Mode

# v1 has no word for "no limit": it shows the largest number of pages a counter holds, in bytes.
_NO_LIMIT = 2**60
_MICROSECOND = 1000
_BUFFER, _PAGE_NEARLY = 65536, 2048

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


def of_cgroup(host: CgroupHost, cgroup: str) -> Usage:
    """The usage of a container's or a pod's cgroup; an empty one where there is no such cgroup (any more)."""
    return of_files(host, lambda controller: reader(host, controller, cgroup))


def of_files(host: CgroupHost, read: Callable[[str], Read]) -> Usage:
    """The same by readers for controllers."""
    if host.mode is Mode.V2:
        return from_v2(time.time_ns(), read(""))
    # On a hybrid host pressure is told by the v2 hierarchy, whatever controllers it has.
    return from_v1(time.time_ns(), read("cpuacct"), read("memory"), read(""))


def remembering(host: CgroupHost, cgroup: str) -> Callable[[str], Read]:
    """A reader for each controller, which reads no file twice: some cost the kernel more than all others together."""
    seen: dict[str, str] = {}

    def of(controller: str) -> Read:
        read = reader(host, controller, cgroup)

        def once(name: str) -> str:
            key = f"{controller}/{name}"
            if (content := seen.get(key)) is None:
                content = seen[key] = read(name)
            return content

        return once

    return of


def reader(host: CgroupHost, controller: str, cgroup: str) -> Read:
    """Reads the files that ``controller`` has in ``cgroup``; v2's own ones for ``""``."""
    mount = host.v1.get(controller, "") or host.unified
    directory = mount + host.occupied(cgroup)
    return lambda name: text(f"{directory}/{name}") if mount else ""


def text(path: str) -> str:
    """The text of a kernel file, which is short; ``""`` where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        whole = piece = os.read(fd, _BUFFER)
        # Such files end a read early only where a page of text is full.
        while len(piece) > _PAGE_NEARLY:
            piece = os.read(fd, _BUFFER)
            whole += piece
        return whole.decode(errors="replace")
    except OSError:  # some cgroup files exist but cannot be read (EOPNOTSUPP for pressure that is off)
        return ""
    finally:
        os.close(fd)


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


def from_v1(at: int, cpuacct: Read, memory: Read, unified: Read) -> Usage:
    """The meaning of the files of v1's cpuacct and memory controllers, and of a hybrid host's pressure files."""
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
        cpu_stall=stall(unified("cpu.pressure")),
        memory_stall=stall(unified("memory.pressure")),
        io_stall=stall(unified("io.pressure")),
    )


def total(at: int, parts: Sequence[Usage]) -> Usage:
    """What several cgroups use together. Free space and waiting times do not add up and are left out."""
    return Usage(
        at=at,
        cpu=_sum([part.cpu for part in parts]),
        memory=_sum([part.memory for part in parts]),
        working_set=_sum([part.working_set for part in parts]),
        rss=_sum([part.rss for part in parts]),
        page_faults=_sum([part.page_faults for part in parts]),
        major_page_faults=_sum([part.major_page_faults for part in parts]),
        swap=_sum([part.swap for part in parts]),
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _less(whole: int | None, part: int) -> int | None:
    return None if whole is None else max(0, whole - part)


def _left(limit: int | None, used: int | None) -> int | None:
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    return max(0, limit - used)


def number(content: str) -> int | None:
    """A file of one number; ``None`` for ``max`` and for nothing."""
    stripped = content.strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else None


def table(content: str) -> dict[str, int]:
    """A file of ``key value`` lines."""
    words = content.split()
    try:
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    except ValueError:  # a line of another form: look at each
        pairs = (line.split() for line in content.splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()}


def stall(content: str) -> Stall | None:
    """A pressure file (docs.kernel.org/accounting/psi.html); the CPU's has no ``full`` line before Linux 5.13."""
    lines = {line.split(" ", 1)[0]: line for line in content.splitlines()}
    if "some" not in lines:
        return None
    nothing = Pressure(0.0, 0.0, 0.0, 0)
    return Stall(_pressure(lines["some"]), _pressure(lines["full"]) if "full" in lines else nothing)


def _pressure(line: str) -> Pressure:
    fields = dict(pair.split("=", 1) for pair in line.split()[1:])
    return Pressure(
        float(fields["avg10"]), float(fields["avg60"]), float(fields["avg300"]), int(fields["total"]) * _MICROSECOND
    )
