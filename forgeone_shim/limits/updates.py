"""New limits for a container that exists: a plan of writes to its cgroup's files, then the writes, or none of them.

What the kernel would refuse is refused with its reason. The files: Documentation/admin-guide/{cgroup-v1,cgroup-v2.rst}.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import resources as created
from forgeone_shim.limits import unified
from forgeone_shim.limits.hugepages import file_of

_FIELD = "linux"
# kernel/sched/core.c: min_cfs_quota_period and max_cfs_quota_period, in microseconds.
_PERIOD_MIN, _PERIOD_MAX, _QUOTA_MIN = 1000, 1_000_000, 1000
# A page counter that was never set reads as a number of this size on v1.
_UNLIMITED = 1 << 62
_REFUSALS = frozenset(
    {errno.EBUSY, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ERANGE, errno.ENOSPC, errno.ENODEV, errno.EOPNOTSUPP}
)


@dataclass(frozen=True, slots=True)
class Write:
    """One value for one file; ``before`` is what it holds, ``usage`` the file that says how much of it is in use."""

    path: str
    value: str
    before: str
    field: str
    usage: str = ""


def plan(resources: Resources, host: Host, cgroup: str) -> list[Write]:
    """The writes, in the order the kernel takes them. What is not set, or is so already, is left alone.

    :raises InvalidInput: values that can never be.
    :raises FailedPrecondition: values that this host, or the pod's cgroup, does not allow.
    """
    files = _Files(host.cgroups, cgroup)
    found = [*_cpusets(resources, files), *_cpu(resources, files), *_hugepages(resources, host, files)]
    found += [*_memory(resources, host, files), *_pids(resources, files), *_unified(resources, host, files)]
    # A unified key has the last word on its file.
    return [write for write in {write.path: write for write in found}.values() if not _same(write)]


class _Files:
    """A cgroup's files by controller."""

    def __init__(self, host: CgroupHost, cgroup: str) -> None:
        self._host, self._cgroup = host, cgroup
        self.v2 = host.mode is Mode.V2

    def path(self, controller: str, name: str, field: str) -> str:
        """Where a file is; FailedPrecondition where this host, or the cgroup, has none."""
        directory = self._host.directory(controller, self._cgroup)
        path = f"{directory}/{name}"
        if directory is None or not Path(path).exists():
            raise FailedPrecondition(f"{field}: the container's cgroup has no {name}", fix=f"enable {controller} there")
        return path

    def has(self, controller: str, name: str) -> bool:
        """Whether the cgroup has a file."""
        directory = self._host.directory(controller, self._cgroup)
        return directory is not None and Path(directory, name).exists()

    def write(self, controller: str, name: str, value: str, field: str, usage: str = "") -> Write:
        """A planned write."""
        path = self.path(controller, name, field)
        return Write(path, value, read(path), field, f"{posixpath.dirname(path)}/{usage}" if usage else "")

    def parent(self, controller: str, name: str) -> str:
        """What the pod's cgroup has there; empty where it has no such file."""
        directory = self._host.directory(controller, cgroups.parent(self._cgroup))
        try:
            return read(f"{directory}/{name}")
        except ForgeError:
            return ""


def read(path: str) -> str:
    """What a file holds, without the line's end."""
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise syscall_error("read", path, error) from error


# -- plan


def _cpusets(resources: Resources, files: _Files) -> Iterator[Write]:
    for kind, text in (("cpus", resources.cpuset_cpus), ("mems", resources.cpuset_mems)):
        if not text:
            continue
        field = f"{_FIELD}.cpuset_{kind}"
        wanted = cpu_list(text, field)
        write = files.write("cpuset", f"cpuset.{kind}", text, field)
        if cpu_list(write.before, field) == wanted:
            continue
        # v2 would take it, and quietly run the container on something else.
        offered = files.parent("cpuset", f"cpuset.{kind}.effective" if files.v2 else f"cpuset.{kind}")
        if offered and not wanted <= cpu_list(offered, field):
            raise FailedPrecondition(f"{field}: {text} is not within its pod's {offered}")
        yield write


def cpu_list(text: str, field: str) -> frozenset[int]:
    """``0-2,7`` as numbers (cpuset(7), List format)."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or max(len(low), len(high)) > 5:
            raise InvalidInput(field, f"{text!r} is not a list such as 0-2,7")
        if int(high or low) < int(low):
            raise InvalidInput(field, f"{part!r} ends before it begins")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _cpu(resources: Resources, files: _Files) -> Iterator[Write]:
    period, quota = resources.cpu_period, resources.cpu_quota
    if period and not _PERIOD_MIN <= period <= _PERIOD_MAX:
        raise InvalidInput(f"{_FIELD}.cpu_period", f"{period} is not in {_PERIOD_MIN}..{_PERIOD_MAX} microseconds")
    if quota not in (0, -1) and quota < _QUOTA_MIN:
        raise InvalidInput(f"{_FIELD}.cpu_quota", f"{quota} is below {_QUOTA_MIN} microseconds")
    if resources.cpu_shares:
        field = f"{_FIELD}.cpu_shares"
        shares = min(max(resources.cpu_shares, 2), 262144)
        if files.v2:
            yield files.write("cpu", "cpu.weight", str(weight(shares)), field)
        else:
            yield files.write("cpu", "cpu.shares", str(shares), field)
    if not (period or quota):
        return
    if files.v2:
        write = files.write("cpu", "cpu.max", "", f"{_FIELD}.cpu_quota")
        old_quota, old_period = write.before.split()
        new_quota = old_quota if not quota else "max" if quota < 0 else str(quota)
        yield Write(write.path, f"{new_quota} {period or old_period}", write.before, write.field)
    else:
        yield from _cpu_v1(period, quota, files)


def _cpu_v1(period: int, quota: int, files: _Files) -> Iterator[Write]:
    """Two files; between the writes no more may be asked for than before or after: the pod may have no more."""
    of_period = files.write("cpu", "cpu.cfs_period_us", str(period), f"{_FIELD}.cpu_period")
    of_quota = files.write("cpu", "cpu.cfs_quota_us", str(quota), f"{_FIELD}.cpu_quota")
    pair = [*([of_period] if period else []), *([of_quota] if quota else [])]
    yield from pair if period >= int(of_period.before) else reversed(pair)


def weight(shares: int) -> int:
    """v1's 2..262144 as v2's 1..10000: as crun has it for new containers."""
    return 1 + (shares - 2) * 9999 // 262142


def _hugepages(resources: Resources, host: Host, files: _Files) -> Iterator[Write]:
    for size, limit in created.hugepages(resources, host).items():
        name = f"hugetlb.{size}.{'max' if files.v2 else 'limit_in_bytes'}"
        usage = f"hugetlb.{size}.{'current' if files.v2 else 'usage_in_bytes'}"
        value, field = str(min(limit, _UNLIMITED)), f"{_FIELD}.hugepage_limits[{size}]"
        yield files.write("hugetlb", name, value, field, usage)
        reservations = file_of(host.cgroups, size)
        if files.has("hugetlb", reservations):
            yield files.write("hugetlb", reservations, value, field, usage)


def _memory(resources: Resources, host: Host, files: _Files) -> Iterator[Write]:
    field, swap_field = f"{_FIELD}.memory_limit_in_bytes", f"{_FIELD}.memory_swap_limit_in_bytes"
    limit, both = resources.memory_limit, resources.memory_swap_limit or resources.memory_limit
    if both > 0 and limit == 0:
        raise InvalidInput(swap_field, "needs a memory limit beside it")
    if both > 0 and not 0 < limit <= both:
        raise InvalidInput(swap_field, "is below the memory limit")
    limits_swap = both and host.swap_limit
    if files.v2:
        if limits_swap:
            swap = "max" if both < 0 else str(both - limit)
            yield files.write("memory", "memory.swap.max", swap, swap_field)
        if limit:
            yield files.write("memory", "memory.max", "max" if limit < 0 else str(limit), field, "memory.current")
        return
    writes: list[Write] = []
    if limit:
        writes.append(files.write("memory", "memory.limit_in_bytes", str(limit), field, "memory.usage_in_bytes"))
    if limits_swap:
        name, usage = "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"
        write = files.write("memory", name, str(both), swap_field, usage)
        # Memory may never exceed memory and swap, in between too.
        grows_past = limit < 0 or limit > int(write.before)
        writes.insert(0 if grows_past else len(writes), write)
    yield from writes


def _pids(resources: Resources, files: _Files) -> Iterator[Write]:
    if resources.pids_limit:
        yield files.write("pids", "pids.max", str(resources.pids_limit), f"{_FIELD}.pids_limit")


def _unified(resources: Resources, host: Host, files: _Files) -> Iterator[Write]:
    if not resources.unified:
        return
    for name, value in sorted(unified.check(resources, host.cgroups).items()):
        field = f"{_FIELD}.unified[{name}]"
        usage = "memory.current" if name == "memory.max" else ""
        yield files.write(name.partition(".")[0], name, value, field, usage)


def _same(write: Write) -> bool:
    if write.value == write.before:
        return True
    if not posixpath.basename(write.path).startswith(("memory.", "hugetlb.")):
        return False
    # The kernel keeps whole pages.
    value, before = _number(write.value), _number(write.before)
    return value is not None and before is not None and value // mmap.PAGESIZE == before // mmap.PAGESIZE


def _number(text: str) -> int | None:
    """Bytes; ``max`` and what stands for it are one number."""
    try:
        number = int(text)
    except ValueError:
        return _UNLIMITED if text == "max" else None
    return _UNLIMITED if number == -1 or number > _UNLIMITED else number


# -- apply

Put = Callable[[str, str], None]


@contextlib.contextmanager
def applied(writes: Sequence[Write], put: Put = cgroups.write) -> Iterator[None]:
    """Write them all; when one is refused, or the block raises, those before it are put back.

    :raises FailedPrecondition: the kernel refuses a value.
    """
    with contextlib.ExitStack() as undo:
        for write in writes:
            try:
                if posixpath.basename(write.path) == "memory.max":
                    _make_room(write, put)
                put(write.path, write.value)
            except OSError as error:
                raise refusal(write, error) from error
            undo.callback(_restore, write, put)
        yield
        undo.pop_all()


def _restore(write: Write, put: Put) -> None:
    try:
        # A file of several lines takes one at a time.
        for line in write.before.splitlines() or ["\n"]:
            put(write.path, line)
    except OSError as error:
        structlog.get_logger("limits").warning("limit not put back", path=write.path, error=error.strerror)


def _make_room(write: Write, put: Put) -> None:
    """v2 takes a limit below what is in use, and kills: so what can go is reclaimed, and the rest compared."""
    limit = _number(write.value)
    used = int(read(write.usage))
    if limit is None or used <= limit:
        return
    # No such file before Linux 5.19; EAGAIN says that less was freed than asked for.
    with contextlib.suppress(OSError):
        put(f"{posixpath.dirname(write.path)}/memory.reclaim", str(used - limit))
    if int(read(write.usage)) > limit:
        raise OSError(errno.EBUSY, "in use")


def refusal(write: Write, error: OSError) -> ForgeError:
    """What the kernel's refusal means."""
    name = posixpath.basename(write.path)
    if error.errno == errno.ENOENT:
        return FailedPrecondition(f"{write.field}: the container's cgroup has no {name}")
    if error.errno not in _REFUSALS:
        return syscall_error("write", write.path, error)
    reason = f"the kernel refuses {write.value} for {name}: {error.strerror}"
    parent = posixpath.dirname(posixpath.dirname(write.path))
    if error.errno == errno.EBUSY and write.usage:
        used = _text(write.usage)
        reason = f"{write.value} bytes is below the {used} bytes in use, and not enough of them can be reclaimed"
    elif name.startswith("cpuset."):
        reason += f"; its pod has {_text(f'{parent}/{name}') or 'none'}"
    elif name.startswith("cpu.cfs_"):
        quota, period = _text(f"{parent}/cpu.cfs_quota_us"), _text(f"{parent}/cpu.cfs_period_us")
        reason += f"; its pod has a quota of {quota} in a period of {period} microseconds"
    return FailedPrecondition(f"{write.field}: {reason}")


def _text(path: str) -> str:
    try:
        return read(path)
    except ForgeError:
        return ""
