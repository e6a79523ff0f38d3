"""Metrics of both runtimes. One name has one list of labels: a kubelet drops samples that do not fit it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import grpc

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.runtime.chunks import chunks
from cri.upstream.link import Link

# A pod's metrics are as long as fifty of its stats.
_PODS: Final = 20
_ABSENT: Final = -1

Behaviour = Callable[[Any, Call], Any]


@dataclass(frozen=True, slots=True)
class Labels:
    """How the samples of two runtimes become those of one.

    ``ours`` and ``theirs`` say, for each metric whose labels differ, where the value of each label is in a sample; one
    that is nowhere is empty, which Prometheus takes for absent.
    """

    descriptors: tuple[pb.MetricDescriptor, ...]
    ours: Mapping[str, tuple[int, ...]]
    theirs: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, ours: Iterable[pb.MetricDescriptor], theirs: Iterable[pb.MetricDescriptor]) -> Labels:
        """Every metric that either has. Labels are in our order, and those that only the other one has come after."""
        mine = {one.name: one for one in ours}
        merged, ours_from, theirs_from = dict(mine), {}, {}
        for one in theirs:
            known = mine.get(one.name)
            if known is None:
                merged[one.name] = one
                continue
            keys = [*known.label_keys, *(key for key in one.label_keys if key not in known.label_keys)]
            if keys != list(known.label_keys):
                merged[one.name] = pb.MetricDescriptor(name=one.name, help=known.help, label_keys=keys)
                ours_from[one.name] = _places(keys, known.label_keys)
            if keys != list(one.label_keys):
                theirs_from[one.name] = _places(keys, one.label_keys)
        return cls(tuple(merged.values()), MappingProxyType(ours_from), MappingProxyType(theirs_from))


def relabel(pods: Iterable[pb.PodSandboxMetrics], places: Mapping[str, tuple[int, ...]]) -> None:
    """Give the samples of these pods, in place, the labels that their metrics have now."""
    if not places:
        return
    for pod in pods:
        for metrics in (pod.metrics, *(container.metrics for container in pod.container_metrics)):
            for metric in metrics:
                found = places.get(metric.name)
                if found is not None:
                    values = metric.label_values
                    metric.label_values[:] = [values[at] if 0 <= at < len(values) else "" for at in found]


def _places(keys: Sequence[str], of: Iterable[str]) -> tuple[int, ...]:
    known = {key: at for at, key in enumerate(of)}
    return tuple(known.get(key, _ABSENT) for key in keys)


class MetricVerbs:
    """The verbs of metrics over both; an older runtime that has none adds nothing to them."""

    def __init__(self, own: Mapping[str, Behaviour]) -> None:
        self._own = own

    def descriptors(self, _request: Any, link: Link, call: Call) -> pb.ListMetricDescriptorsResponse:
        """What either measures."""
        return pb.ListMetricDescriptorsResponse(descriptors=self._labels(link, call).descriptors)

    def pods(self, _request: Any, link: Link, call: Call) -> pb.ListPodSandboxMetricsResponse:
        """The metrics of all pods that are ready."""
        whole = pb.ListPodSandboxMetricsRequest()
        theirs = link.begin("ListPodSandboxMetrics", whole, call)
        labels = self._labels(link, call)
        ours: pb.ListPodSandboxMetricsResponse = self._own["ListPodSandboxMetrics"](whole, call)
        relabel(ours.pod_metrics, labels.ours)
        found = pb.ListPodSandboxMetricsResponse.FromString(_or_nothing(theirs)).pod_metrics
        relabel(found, labels.theirs)
        ours.pod_metrics.MergeFrom(found)
        return ours

    def pieces(self, request: Any, link: Link, call: Call) -> Iterator[pb.StreamPodSandboxMetricsResponse]:
        """The same in pieces."""
        for some in chunks(self.pods(request, link, call).pod_metrics, _PODS):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=some)

    def _labels(self, link: Link, call: Call) -> Labels:
        theirs = link.begin("ListMetricDescriptors", pb.ListMetricDescriptorsRequest(), call)
        ours = self._own["ListMetricDescriptors"](pb.ListMetricDescriptorsRequest(), call).descriptors
        return Labels.of(ours, pb.ListMetricDescriptorsResponse.FromString(_or_nothing(theirs)).descriptors)


def _or_nothing(answer: Callable[[], bytes]) -> bytes:
    try:
        return answer()
    except Relayed as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return b""
        raise
