"""Readings -> ``ContainerStats`` and ``PodSandboxStats``; what the kernel does not say stays unset."""

from __future__ import annotations

from typing import Final

from cri.api import runtime_pb2 as pb
from cri.translate import sandbox
from forgeone_shim.metrics.meter import ContainerReading, PodReading
from forgeone_shim.metrics.network import Interface
from forgeone_shim.metrics.usage import Pressure, Stall, Usage

_DEFAULT_INTERFACE: Final = "eth0"


def container(reading: ContainerReading) -> pb.ContainerStats:
    """What one container uses."""
    view, usage, layer = reading.view, reading.usage, reading.layer
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=view.id,
            metadata=pb.ContainerMetadata(name=view.spec.name, attempt=view.spec.attempt),
            labels=view.spec.labels,
            annotations=view.spec.annotations,
        ),
        cpu=_cpu(usage, reading.nano_cores),
        memory=_memory(usage),
        writable_layer=pb.FilesystemUsage(
            timestamp=layer.at,
            fs_id=pb.FilesystemIdentifier(mountpoint=layer.mountpoint),
            used_bytes=_value(layer.used_bytes),
            inodes_used=_value(layer.used_inodes),
        ),
        swap=_swap(usage),
        io=_io(usage),
    )


def pod(reading: PodReading) -> pb.PodSandboxStats:
    """What one pod uses, and each of its containers that run."""
    view, usage, at = reading.view, reading.usage, reading.usage.at
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=view.id,
            metadata=sandbox.metadata(view.spec),
            labels=view.spec.labels,
            annotations=view.spec.annotations,
        ),
        linux=pb.LinuxPodSandboxStats(
            cpu=_cpu(usage, reading.nano_cores),
            memory=_memory(usage),
            network=_network(at, reading.interfaces),
            process=pb.ProcessUsage(timestamp=at, process_count=_value(reading.processes)),
            containers=[container(one) for one in reading.containers],
            io=_io(usage),
        ),
    )


def _cpu(usage: Usage, nano_cores: int | None) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=usage.at,
        usage_core_nano_seconds=_value(usage.cpu),
        usage_nano_cores=_value(nano_cores),
        psi=_psi(usage.cpu_stall),
    )


def _memory(usage: Usage) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        timestamp=usage.at,
        working_set_bytes=_value(usage.working_set),
        available_bytes=_value(usage.available),
        usage_bytes=_value(usage.memory),
        rss_bytes=_value(usage.rss),
        page_faults=_value(usage.page_faults),
        major_page_faults=_value(usage.major_page_faults),
        psi=_psi(usage.memory_stall),
    )


def _swap(usage: Usage) -> pb.SwapUsage | None:
    if usage.swap is None:
        return None
    return pb.SwapUsage(
        timestamp=usage.at,
        swap_usage_bytes=_value(usage.swap),
        swap_available_bytes=_value(usage.swap_available),
    )


def _io(usage: Usage) -> pb.IoUsage | None:
    return None if usage.io_stall is None else pb.IoUsage(timestamp=usage.at, psi=_psi(usage.io_stall))


def _network(at: int, interfaces: tuple[Interface, ...]) -> pb.NetworkUsage | None:
    if not interfaces:
        return None
    default = next((one for one in interfaces if one.name == _DEFAULT_INTERFACE), interfaces[0])
    return pb.NetworkUsage(
        timestamp=at,
        default_interface=_interface(default),
        interfaces=[_interface(one) for one in interfaces if one is not default],
    )


def _interface(one: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=one.name,
        rx_bytes=_value(one.rx_bytes),
        rx_errors=_value(one.rx_errors),
        tx_bytes=_value(one.tx_bytes),
        tx_errors=_value(one.tx_errors),
    )


def _value(number: int | None) -> pb.UInt64Value | None:
    return None if number is None else pb.UInt64Value(value=number)


def _psi(stall: Stall | None) -> pb.PsiStats | None:
    return None if stall is None else pb.PsiStats(Full=_pressure(stall.full), Some=_pressure(stall.some))


def _pressure(one: Pressure) -> pb.PsiData:
    return pb.PsiData(Total=one.total, Avg10=one.avg10, Avg60=one.avg60, Avg300=one.avg300)
