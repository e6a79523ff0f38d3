"""The metrics cAdvisor has told kubelets of: their descriptors, and samples -> ``PodSandboxMetrics``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cri.api import runtime_pb2 as pb
from engines.base import SandboxSpec
from forgeone_shim.metrics.meter import PodSamples
from forgeone_shim.metrics.samples import Sample

BASE: Final = ("container", "id", "image", "name", "namespace", "pod")
"""Labels of every metric: the container's name in its pod, its cgroup, its image, its id, and the pod's names."""

_C, _G = pb.COUNTER, pb.GAUGE
_DEVICE, _INTERFACE = ("device",), ("interface",)

# name without "container_": type, labels beside BASE, help
_TABLE: Final[Mapping[str, tuple[pb.MetricType.ValueType, tuple[str, ...], str]]] = MappingProxyType(
    {
        "blkio_device_usage_total": (
            _C,
            ("device", "major", "minor", "operation"),
            "Bytes moved from and to a block device.",
        ),
        "cpu_cfs_periods_total": (_C, (), "Enforcement periods of the CPU quota that have passed."),
        "cpu_cfs_throttled_periods_total": (_C, (), "Periods in which the CPU quota was used up."),
        "cpu_cfs_throttled_seconds_total": (_C, (), "Seconds spent waiting because the CPU quota was used up."),
        "cpu_system_seconds_total": (_C, (), "Seconds of CPU time spent in the kernel."),
        "cpu_usage_seconds_total": (_C, (), "Seconds of CPU time."),
        "cpu_user_seconds_total": (_C, (), "Seconds of CPU time spent outside the kernel."),
        "file_descriptors": (_G, (), "Open file descriptors of all processes."),
        "forgeone_entropy_bits": (_G, (), "Bits of fresh seed since its state could last be somebody else's."),
        "forgeone_trust_score": (_G, (), "How far it is to be trusted, 0 to 100."),
        "fs_inodes_free": (_G, _DEVICE, "Free inodes of the filesystem that the writable layer is on."),
        "fs_inodes_total": (_G, _DEVICE, "Inodes of the filesystem that the writable layer is on."),
        "fs_limit_bytes": (_G, _DEVICE, "Size of the filesystem that the writable layer is on."),
        "fs_reads_bytes_total": (_C, _DEVICE, "Bytes read from a block device."),
        "fs_reads_total": (_C, _DEVICE, "Reads from a block device."),
        "fs_usage_bytes": (_G, _DEVICE, "Bytes of the writable layer."),
        "fs_writes_bytes_total": (_C, _DEVICE, "Bytes written to a block device."),
        "fs_writes_total": (_C, _DEVICE, "Writes to a block device."),
        "hugetlb_max_usage_bytes": (_G, ("pagesize",), "Most bytes of huge pages used at a time."),
        "hugetlb_usage_bytes": (_G, ("pagesize",), "Bytes of huge pages in use."),
        "last_seen": (_G, (), "When the container was last looked at, in seconds since the epoch."),
        "memory_cache": (_G, (), "Bytes of page cache."),
        "memory_failcnt": (_C, (), "How often the memory limit was reached."),
        "memory_failures_total": (_C, ("failure_type", "scope"), "Page faults."),
        "memory_kernel_usage": (_G, (), "Bytes of kernel memory."),
        "memory_mapped_file": (_G, (), "Bytes of files mapped into memory."),
        "memory_max_usage_bytes": (_G, (), "Most bytes of memory used at a time."),
        "memory_rss": (_G, (), "Bytes of anonymous memory."),
        "memory_swap": (_G, (), "Bytes in swap."),
        "memory_usage_bytes": (_G, (), "Bytes of memory, page cache included."),
        "memory_working_set_bytes": (_G, (), "Bytes of memory less the page cache that is easily given back."),
        "network_receive_bytes_total": (_C, _INTERFACE, "Bytes received."),
        "network_receive_errors_total": (_C, _INTERFACE, "Errors while receiving."),
        "network_receive_packets_dropped_total": (_C, _INTERFACE, "Packets dropped while receiving."),
        "network_receive_packets_total": (_C, _INTERFACE, "Packets received."),
        "network_transmit_bytes_total": (_C, _INTERFACE, "Bytes sent."),
        "network_transmit_errors_total": (_C, _INTERFACE, "Errors while sending."),
        "network_transmit_packets_dropped_total": (_C, _INTERFACE, "Packets dropped while sending."),
        "network_transmit_packets_total": (_C, _INTERFACE, "Packets sent."),
        "oom_events_total": (_C, (), "Processes the kernel killed for want of memory."),
        "pressure_cpu_stalled_seconds_total": (_C, (), "Seconds in which all tasks waited for a CPU."),
        "pressure_cpu_waiting_seconds_total": (_C, (), "Seconds in which some task waited for a CPU."),
        "pressure_io_stalled_seconds_total": (_C, (), "Seconds in which all tasks waited for I/O."),
        "pressure_io_waiting_seconds_total": (_C, (), "Seconds in which some task waited for I/O."),
        "pressure_memory_stalled_seconds_total": (_C, (), "Seconds in which all tasks waited for memory."),
        "pressure_memory_waiting_seconds_total": (_C, (), "Seconds in which some task waited for memory."),
        "processes": (_G, (), "Processes."),
        "sockets": (_G, (), "Open sockets of all processes."),
        "spec_cpu_period": (_G, (), "Enforcement period of the CPU quota, in microseconds."),
        "spec_cpu_quota": (_G, (), "CPU quota, in microseconds a period."),
        "spec_cpu_shares": (_G, (), "CPU shares."),
        "spec_memory_limit_bytes": (_G, (), "Memory limit."),
        "spec_memory_reservation_limit_bytes": (_G, (), "Memory that is protected."),
        "spec_memory_swap_limit_bytes": (_G, (), "Limit of memory and swap together."),
        "start_time_seconds": (_G, (), "When the container was started, in seconds since the epoch."),
        "threads": (_G, (), "Threads."),
        "threads_max": (_G, (), "Limit of threads; 0 where there is none."),
        "ulimits_soft": (_G, ("ulimit",), "Soft limits of the first process."),
    }
)


@dataclass(frozen=True, slots=True)
class Described:
    """A metric: whether it only grows, its labels, and what it means."""

    counter: bool
    labels: tuple[str, ...]
    help: str


DESCRIBED: Final[Mapping[str, Described]] = MappingProxyType(
    {f"container_{name}": Described(type_ == _C, BASE + extra, text) for name, (type_, extra, text) in _TABLE.items()}
)
"""Every metric there can be, by its name."""

_TYPES: Final = MappingProxyType({f"container_{name}": type_ for name, (type_, _, _) in _TABLE.items()})


def descriptors() -> list[pb.MetricDescriptor]:
    """The same as CRI tells it."""
    return [pb.MetricDescriptor(name=name, help=one.help, label_keys=one.labels) for name, one in DESCRIBED.items()]


def labelled(read: PodSamples) -> Iterator[tuple[tuple[str, ...], tuple[Sample, ...]]]:
    """One pod's samples and each of its containers', with the values of the labels :data:`BASE`.

    A pod's own have no container, image or name.
    """
    yield _labels(read.view.spec, id_=read.cgroup), read.pod
    for view, cgroup, found in read.containers:
        image = view.spec.user_specified_image or view.image_ref
        yield _labels(read.view.spec, container=view.spec.name, id_=cgroup, image=image, name=view.id), found


def fill(message: pb.PodSandboxMetrics, read: PodSamples) -> None:
    """One pod's metrics.

    They are written where they belong: there are dozens a container, and to copy them costs as much as to make them.
    """
    message.pod_sandbox_id = read.view.id
    (labels, own), *containers = labelled(read)
    _metrics(message, own, labels, read.at)
    for (view, _, _), (labels, found) in zip(read.containers, containers, strict=True):
        _metrics(message.container_metrics.add(container_id=view.id), found, labels, read.at)


def _labels(spec: SandboxSpec, *, container: str = "", id_: str, image: str = "", name: str = "") -> tuple[str, ...]:
    return (container, id_, image, name, spec.namespace, spec.name)


def _metrics(
    owner: pb.PodSandboxMetrics | pb.ContainerMetrics, samples: Iterable[Sample], labels: tuple[str, ...], at: int
) -> None:
    add = owner.metrics.add
    for one in samples:
        message = add(name=one.name, timestamp=at, metric_type=_TYPES[one.name], label_values=labels + one.labels)
        message.value.value = one.value
