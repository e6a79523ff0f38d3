"""What there is to tell of the node itself, gathered at each scrape."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cri.runtime.ports import RuntimePort
from forgeone_shim.metrics.figures import Figure, Figures, Kind, gauge
from forgeone_shim.runtime.views import NodeStatus
from forgeone_shim.version import VERSION

DEFAULT: Final = "default"
"""The handler without a name, which a label cannot tell from none."""


class NodeCollector(Collector):
    """The runtime's conditions, pods, containers and images, and what rooms tell of themselves."""

    def __init__(self, runtime: RuntimePort, rooms: Sequence[Figures] = ()) -> None:
        self._runtime, self._rooms = runtime, tuple(rooms)

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now."""
        for figure in self._figures():
            yield family(figure)

    def _figures(self) -> Iterator[Figure]:
        yield built()
        yield from of_status(self._runtime.status())
        yield pods((view.handler or DEFAULT, view.ready) for view in self._runtime.sandboxes())
        yield containers(
            (view.engine, "unknown" if view.unknown else str(view.state)) for view in self._runtime.containers()
        )
        yield gauge("forgeone_images", "Images that are here.", len(self._runtime.images.list()))
        for room in self._rooms:
            yield from room()


def built() -> Figure:
    """What runs here."""
    labels = ("version", "python", "kernel")
    values = (VERSION, platform.python_version(), platform.release())
    return Figure("forgeone_build_info", "What runs here; always 1.", Kind.GAUGE, labels, ((values, 1),))


def of_status(status: NodeStatus) -> Iterator[Figure]:
    """The conditions that CRI's Status tells, and the runtime handlers."""
    conditions = {
        "RuntimeReady": status.runtime,
        "NetworkReady": status.network,
        "ConfigurationLoaded": status.configuration,
        "AuditLogSound": status.audit,
        **({"ClusterPoliciesSynced": status.cluster} if status.cluster is not None else {}),
    }
    yield Figure(
        "forgeone_condition",
        "Conditions of CRI's Status: 1 where it is as it should be, else 0.",
        Kind.GAUGE,
        ("condition",),
        tuple(((name,), float(one.ready)) for name, one in conditions.items()),
    )
    yield Figure(
        "forgeone_runtime_handler_info",
        "Runtime handlers that pods may name; always 1.",
        Kind.GAUGE,
        ("handler",),
        tuple(((one.name or DEFAULT,), 1.0) for one in status.handlers),
    )


def pods(found: Iterable[tuple[str, bool]]) -> Figure:
    """``found`` are their handlers, and whether they are ready."""
    counts = Counter((handler, "true" if ready else "false") for handler, ready in found)
    return Figure("forgeone_pods", "Pods by their handler.", Kind.GAUGE, ("handler", "ready"), tuple(counts.items()))


def containers(found: Iterable[tuple[str, str]]) -> Figure:
    """``found`` are their engines and states."""
    labels = ("engine", "state")
    help_ = "Containers by what runs them and the state of their life."
    return Figure("forgeone_containers", help_, Kind.GAUGE, labels, tuple(Counter(found).items()))


def family(figure: Figure) -> Metric:
    """A figure in the library's words."""
    made: GaugeMetricFamily | CounterMetricFamily
    if figure.kind is Kind.COUNTER:
        made = CounterMetricFamily(figure.name, figure.help, labels=figure.labels)
    else:
        made = GaugeMetricFamily(figure.name, figure.help, labels=figure.labels)
    for labels, value in figure.values:
        made.add_metric(labels, value)
    return made
