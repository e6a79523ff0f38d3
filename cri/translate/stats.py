"""Usage -> ``ContainerStats``; what the kernel does not say stays unset."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from forgeone_shim.metrics.usage import Pressure, Stall, Usage
from forgeone_shim.runtime.views import ContainerView


def container(view: ContainerView, usage: Usage) -> pb.ContainerStats:
    """What one container uses."""
    stats = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=view.id,
            metadata=pb.ContainerMetadata(name=view.spec.name, attempt=view.spec.attempt),
            labels=view.spec.labels,
            annotations=view.spec.annotations,
        ),
        cpu=pb.CpuUsage(timestamp=usage.at, usage_core_nano_seconds=_value(usage.cpu), psi=_psi(usage.cpu_stall)),
        memory=pb.MemoryUsage(
            timestamp=usage.at,
            working_set_bytes=_value(usage.working_set),
            available_bytes=_value(usage.available),
            usage_bytes=_value(usage.memory),
            rss_bytes=_value(usage.rss),
            page_faults=_value(usage.page_faults),
            major_page_faults=_value(usage.major_page_faults),
            psi=_psi(usage.memory_stall),
        ),
    )
    if usage.swap is not None:
        stats.swap.CopyFrom(
            pb.SwapUsage(
                timestamp=usage.at,
                swap_usage_bytes=_value(usage.swap),
                swap_available_bytes=_value(usage.swap_available),
            )
        )
    if usage.io_stall is not None:
        stats.io.CopyFrom(pb.IoUsage(timestamp=usage.at, psi=_psi(usage.io_stall)))
    return stats


def _value(number: int | None) -> pb.UInt64Value | None:
    return None if number is None else pb.UInt64Value(value=number)


def _psi(stall: Stall | None) -> pb.PsiStats | None:
    return None if stall is None else pb.PsiStats(Full=_pressure(stall.full), Some=_pressure(stall.some))


def _pressure(one: Pressure) -> pb.PsiData:
    return pb.PsiData(Total=one.total, Avg10=one.avg10, Avg60=one.avg60, Avg300=one.avg300)
