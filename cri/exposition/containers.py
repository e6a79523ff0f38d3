"""What containers and pods use, under the names that cAdvisor gave it, read at each scrape.

A kubelet hands the same on at ``/metrics/cadvisor`` where its feature gate PodAndContainerStatsFromCRI is on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from cri.runtime.ports import RuntimePort
from cri.translate import metrics
from forgeone_shim.metrics.meter import PodSamples

_Family = CounterMetricFamily | GaugeMetricFamily | UnknownMetricFamily


class ContainerCollector(Collector):
    """Those of all pods that are ready."""

    def __init__(self, runtime: RuntimePort) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Every metric that some pod has a value of."""
        ready = [view for view in self._runtime.sandboxes() if view.ready]
        yield from families(self._runtime.meter.samples(ready, self._runtime.containers()))


def families(found: Iterable[PodSamples]) -> list[Metric]:
    """The samples by their metrics, in the order of the descriptors."""
    made: dict[str, _Family] = {}
    for pod in found:
        for labels, samples in metrics.labelled(pod):
            for one in samples:
                if one.name not in made:
                    made[one.name] = _family(one.name, metrics.DESCRIBED[one.name])
                made[one.name].add_metric(labels + one.labels, one.value)
    return [made[name] for name in metrics.DESCRIBED if name in made]


def _family(name: str, described: metrics.Described) -> _Family:
    if not described.counter:
        return GaugeMetricFamily(name, described.help, labels=described.labels)
    # The format ends a counter's name with _total, and those that cAdvisor named otherwise have to stay what they are.
    kind = CounterMetricFamily if name.endswith("_total") else UnknownMetricFamily
    return kind(name, described.help, labels=described.labels)
