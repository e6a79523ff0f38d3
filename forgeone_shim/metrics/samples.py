"""Everything else that the kernel counts for a container, under the names that cAdvisor gave it.

A value that this kernel, hierarchy or configuration does not have makes no sample. Times are whole seconds, as CRI's
metrics are integers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.base import ContainerSpec, Measured
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.metrics.network import Interface
from forgeone_shim.metrics.usage import Read, Stall, Usage, number, table, text
from forgeone_shim.runtime.views import FilesystemUsage

_SECOND = 1_000_000_000
_USEC_A_SECOND = 1_000_000
_CONTROLLERS = ("cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; ``labels`` are those beside the container's own, in the order of the metric's descriptor."""

    name: str
    value: int
    labels: tuple[str, ...] = ()


def of_container(host: CgroupHost, read: Callable[[str], Read], usage: Usage, sizes: Sequence[str]) -> Iterator[Sample]:
    """What is read from the cgroup, by readers for controllers, and what ``usage`` has already."""
    yield from of_usage(usage)
    if host.mode is Mode.V2:
        yield from of_v2(read(""), sizes)
    else:
        yield from of_v1({name: read(name) for name in _CONTROLLERS}, sizes)


def _plain(values: Iterable[tuple[str, int | None]]) -> Iterator[Sample]:
    return (Sample(name, value) for name, value in values if value is not None)


def of_usage(usage: Usage) -> Iterator[Sample]:
    """The parts of a :class:`Usage` that are metrics too."""
    values = [
        ("container_cpu_usage_seconds_total", None if usage.cpu is None else usage.cpu // _SECOND),
        ("container_memory_usage_bytes", usage.memory),
        ("container_memory_working_set_bytes", usage.working_set),
        ("container_memory_rss", usage.rss),
        ("container_memory_swap", usage.swap),
    ]
    for resource, stall in (("cpu", usage.cpu_stall), ("memory", usage.memory_stall), ("io", usage.io_stall)):
        values += _pressure(resource, stall)
    return _plain(values)


def _pressure(resource: str, stall: Stall | None) -> list[tuple[str, int | None]]:
    if stall is None:
        return []
    return [
        (f"container_pressure_{resource}_waiting_seconds_total", stall.some.total // _SECOND),
        (f"container_pressure_{resource}_stalled_seconds_total", stall.full.total // _SECOND),
    ]


def of_v1(read: Mapping[str, Read], sizes: Iterable[str]) -> Iterator[Sample]:
    """The meaning of v1's files, a reader for each controller."""
    cpu, memory = table(read["cpu"]("cpu.stat")), table(read["memory"]("memory.stat"))
    oom = table(read["memory"]("memory.oom_control"))
    yield from _plain(
        [
            ("container_cpu_user_seconds_total", _per(number(read["cpuacct"]("cpuacct.usage_user")), _SECOND)),
            ("container_cpu_system_seconds_total", _per(number(read["cpuacct"]("cpuacct.usage_sys")), _SECOND)),
            ("container_cpu_cfs_periods_total", cpu.get("nr_periods")),
            ("container_cpu_cfs_throttled_periods_total", cpu.get("nr_throttled")),
            ("container_cpu_cfs_throttled_seconds_total", _per(cpu.get("throttled_time"), _SECOND)),
            ("container_memory_cache", memory.get("total_cache")),
            ("container_memory_mapped_file", memory.get("total_mapped_file")),
            ("container_memory_kernel_usage", number(read["memory"]("memory.kmem.usage_in_bytes"))),
            ("container_memory_max_usage_bytes", number(read["memory"]("memory.max_usage_in_bytes"))),
            ("container_memory_failcnt", number(read["memory"]("memory.failcnt"))),
            ("container_oom_events_total", oom.get("oom_kill")),
            ("container_threads", number(read["pids"]("pids.current"))),
            ("container_threads_max", _threads_max(read["pids"]("pids.max"))),
        ]
    )
    # The hierarchy's counts contain the container's own; without them both are the same.
    yield from _failures(memory, "container", "")
    yield from _failures(memory, "hierarchy", "total_")
    for kind, file in (("bytes", "io_service_bytes"), ("ios", "io_serviced")):
        for prefix in ("blkio.bfq", "blkio.throttle"):
            lines = read["blkio"](f"{prefix}.{file}_recursive").splitlines()
            counts = {(words[0], words[1]): int(words[2]) for words in map(str.split, lines) if len(words) == 3}
            if counts:
                yield from _blkio_v1(counts, kind)
                break
    for size in sizes:
        for name, file in (("usage", "usage_in_bytes"), ("max_usage", "max_usage_in_bytes")):
            value = number(read["hugetlb"](f"hugetlb.{size}.{file}"))
            if value is not None:
                yield Sample(f"container_hugetlb_{name}_bytes", value, (size,))


def _blkio_v1(counts: dict[tuple[str, str], int], kind: str) -> Iterator[Sample]:
    for (device, operation), value in counts.items():
        if kind == "bytes":
            yield Sample("container_blkio_device_usage_total", value, (*_device(device), operation))
        if operation in ("Read", "Write"):
            suffix = "_bytes_total" if kind == "bytes" else "_total"
            yield Sample(f"container_fs_{operation.lower()}s{suffix}", value, _device(device)[:1])


def of_v2(read: Read, sizes: Iterable[str], name: Callable[[str], str] | None = None) -> Iterator[Sample]:
    """The meaning of v2's files; ``name`` is how a block device is called by its numbers, else as on this host."""
    name = name or block_device
    cpu, memory, events = table(read("cpu.stat")), table(read("memory.stat")), table(read("memory.events"))
    yield from _plain(
        [
            ("container_cpu_user_seconds_total", _per(cpu.get("user_usec"), _USEC_A_SECOND)),
            ("container_cpu_system_seconds_total", _per(cpu.get("system_usec"), _USEC_A_SECOND)),
            ("container_cpu_cfs_periods_total", cpu.get("nr_periods")),
            ("container_cpu_cfs_throttled_periods_total", cpu.get("nr_throttled")),
            ("container_cpu_cfs_throttled_seconds_total", _per(cpu.get("throttled_usec"), _USEC_A_SECOND)),
            ("container_memory_cache", memory.get("file")),
            ("container_memory_mapped_file", memory.get("file_mapped")),
            ("container_memory_kernel_usage", memory.get("kernel")),
            ("container_memory_max_usage_bytes", number(read("memory.peak"))),
            ("container_memory_failcnt", events.get("max")),
            ("container_oom_events_total", events.get("oom_kill")),
            ("container_threads", number(read("pids.current"))),
            ("container_threads_max", _threads_max(read("pids.max"))),
        ]
    )
    # v2 counts hierarchically alone.
    yield from _failures(memory, "hierarchy", "")
    for line in read("io.stat").splitlines():
        device, *pairs = line.split()
        found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for field, operation, suffix in _IO_STAT:
            if found.get(field, "").isdigit():
                value = int(found[field])
                yield Sample(f"container_fs_{operation.lower()}s{suffix}", value, (name(device),))
                if suffix == "_bytes_total":
                    labels = (name(device), *_numbers(device), operation)
                    yield Sample("container_blkio_device_usage_total", value, labels)
    for size in sizes:
        value_now = number(read(f"hugetlb.{size}.current"))
        if value_now is not None:
            yield Sample("container_hugetlb_usage_bytes", value_now, (size,))


_IO_STAT = (
    ("rbytes", "Read", "_bytes_total"),
    ("wbytes", "Write", "_bytes_total"),
    ("rios", "Read", "_total"),
    ("wios", "Write", "_total"),
)


def _failures(memory: dict[str, int], scope: str, prefix: str) -> Iterator[Sample]:
    for kind in ("pgfault", "pgmajfault"):
        if prefix + kind in memory:
            yield Sample("container_memory_failures_total", memory[prefix + kind], (kind, scope))


def _threads_max(content: str) -> int | None:
    # cAdvisor's word for no limit.
    return 0 if content.strip() == "max" else number(content)


def _per(value: int | None, unit: int) -> int | None:
    return None if value is None else value // unit


def _device(numbers: str) -> tuple[str, str, str]:
    """The path, major and minor number of a block device written ``8:0``."""
    return (block_device(numbers), *_numbers(numbers))


def _numbers(numbers: str) -> tuple[str, str]:
    major, _, minor = numbers.partition(":")
    return major, minor


def block_device(numbers: str) -> str:
    """``/dev/sda`` for ``8:0``, where the kernel knows it by a name."""
    try:
        return "/dev/" + Path(f"/sys/dev/block/{numbers}").readlink().name
    except OSError:
        return numbers


def page_sizes(directory: str = "/sys/kernel/mm/hugepages") -> list[str]:
    """The sizes of huge pages as cgroup files spell them: ``64KB``, ``2MB``, ``1GB``."""
    try:
        names = [path.name for path in Path(directory).iterdir()]
    except OSError:
        return []
    return [_size(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in sorted(names)]


def _size(kibibytes: int) -> str:
    for factor, unit in ((1 << 20, "GB"), (1 << 10, "MB")):
        if kibibytes >= factor:
            return f"{kibibytes // factor}{unit}"
    return f"{kibibytes}KB"


def of_processes(pids: list[int]) -> Iterator[Sample]:
    """Processes, their descriptors, and the limit of the first."""
    descriptors = sockets = 0
    for pid in pids:
        targets = _descriptors(pid)
        descriptors += len(targets)
        sockets += sum(target.startswith("socket:") for target in targets)
    yield from _plain(
        [
            ("container_processes", len(pids)),
            ("container_file_descriptors", descriptors),
            ("container_sockets", sockets),
        ]
    )
    if pids:
        yield from of_limits(text(f"/proc/{pids[0]}/limits"))


def _descriptors(pid: int) -> list[str]:
    """Where the descriptors of a process lead; those that are closed meanwhile are left out."""
    directory, found = f"/proc/{pid}/fd", []
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):  # noqa: PTH208
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"{directory}/{name}"))  # noqa: PTH115
    return found


def of_limits(limits: str) -> Iterator[Sample]:
    """The soft limit of open files in ``/proc/PID/limits``; one without bound has no value."""
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            if soft.isdigit():
                yield Sample("container_ulimits_soft", int(soft), ("max_open_files",))


def of_spec(spec: ContainerSpec, *, started_at: int, now: int) -> Iterator[Sample]:
    """What was asked for, and since when it runs (nanoseconds since the epoch)."""
    limits = spec.resources
    unified_low = limits.unified.get("memory.low", "")
    yield from _plain(
        [
            ("container_last_seen", now // _SECOND),
            ("container_start_time_seconds", started_at // _SECOND),
            ("container_spec_cpu_period", limits.cpu_period or None),
            ("container_spec_cpu_quota", limits.cpu_quota if limits.cpu_quota > 0 else None),
            ("container_spec_cpu_shares", limits.cpu_shares or None),
            ("container_spec_memory_limit_bytes", limits.memory_limit if limits.memory_limit > 0 else None),
            (
                "container_spec_memory_swap_limit_bytes",
                limits.memory_swap_limit if limits.memory_swap_limit > 0 else None,
            ),
            ("container_spec_memory_reservation_limit_bytes", int(unified_low) if unified_low.isdigit() else None),
        ]
    )


def of_layer(layer: FilesystemUsage, device: str) -> Iterator[Sample]:
    """The writable layer, and the room on the filesystem it lies on."""
    yield Sample("container_fs_usage_bytes", layer.used_bytes, (device,))
    with contextlib.suppress(OSError):
        found = os.statvfs(layer.mountpoint)
        yield Sample("container_fs_limit_bytes", found.f_blocks * found.f_frsize, (device,))
        yield Sample("container_fs_inodes_total", found.f_files, (device,))
        yield Sample("container_fs_inodes_free", found.f_ffree, (device,))


def of_measured(told: Measured, device: str) -> Iterator[Sample]:
    """What a kernel of the pod's own says of a container besides its cgroup; ``device`` is what its layer lies on."""
    values = (
        ("container_processes", told.processes, ()),
        ("container_file_descriptors", told.descriptors, ()),
        ("container_sockets", told.sockets, ()),
        ("container_ulimits_soft", told.open_files, ("max_open_files",)),
        ("container_fs_usage_bytes", told.layer_bytes, (device,)),
        ("container_fs_limit_bytes", told.layer_size, (device,)),
        ("container_fs_inodes_total", told.layer_inodes_total, (device,)),
        ("container_fs_inodes_free", told.layer_inodes_free, (device,)),
    )
    return (Sample(name, value, labels) for name, value, labels in values if value is not None)


def of_trust(score: int, entropy: int) -> Iterator[Sample]:
    """How far a container is to be trusted, and its bits of fresh seed."""
    yield Sample("container_forgeone_trust_score", score)
    yield Sample("container_forgeone_entropy_bits", entropy)


def of_interfaces(found: Iterable[Interface]) -> Iterator[Sample]:
    """A pod's network."""
    for one in found:
        for name, value in (
            ("receive_bytes", one.rx_bytes),
            ("receive_packets", one.rx_packets),
            ("receive_errors", one.rx_errors),
            ("receive_packets_dropped", one.rx_dropped),
            ("transmit_bytes", one.tx_bytes),
            ("transmit_packets", one.tx_packets),
            ("transmit_errors", one.tx_errors),
            ("transmit_packets_dropped", one.tx_dropped),
        ):
            yield Sample(f"container_network_{name}_total", value, (one.name,))
