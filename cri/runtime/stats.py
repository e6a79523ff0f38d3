"""What containers and pods use, read while answering."""

from __future__ import annotations

from collections.abc import Iterator

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.chunks import chunks
from cri.runtime.verbs import Verbs, selected
from cri.translate import metrics, stats
from cri.translate.fields import given
from forgeone_shim.metrics.meter import PodSamples
from forgeone_shim.runtime.views import SandboxView


class StatsVerbs(Verbs):
    """ContainerStats, PodSandboxStats and their lists; the metrics that a kubelet hands on to Prometheus."""

    def ContainerStats(self, request: pb.ContainerStatsRequest, _call: Call) -> pb.ContainerStatsResponse:
        """What one container uses; of one that has ended, what it wrote."""
        view = self._runtime.container(given("container_id", request.container_id))
        return pb.ContainerStatsResponse(stats=stats.container(self._runtime.meter.container(view)))

    def ListContainerStats(self, request: pb.ListContainerStatsRequest, _call: Call) -> pb.ListContainerStatsResponse:
        """The same of all that fit the filter and run."""
        return pb.ListContainerStatsResponse(stats=self._container_stats(request.filter))

    def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, _call: Call
    ) -> Iterator[pb.StreamContainerStatsResponse]:
        """The same in pieces."""
        for piece in chunks(self._container_stats(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=piece)

    def _container_stats(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        selector = dict(wanted.label_selector)
        views = [
            view
            for view in self._runtime.containers()
            if view.live
            and view.id.startswith(wanted.id)
            and view.sandbox_id.startswith(wanted.pod_sandbox_id)
            and selected(view.spec.labels, selector)
        ]
        return [stats.container(reading) for reading in self._runtime.meter.containers(views)]

    def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, _call: Call) -> pb.PodSandboxStatsResponse:
        """What one pod uses."""
        view = self._runtime.sandbox(given("pod_sandbox_id", request.pod_sandbox_id))
        [found] = self._pods([view])
        return pb.PodSandboxStatsResponse(stats=found)

    def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest, _call: Call
    ) -> pb.ListPodSandboxStatsResponse:
        """The same of all that fit the filter and are ready."""
        return pb.ListPodSandboxStatsResponse(stats=self._pod_stats(request.filter))

    def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, _call: Call
    ) -> Iterator[pb.StreamPodSandboxStatsResponse]:
        """The same in pieces."""
        for piece in chunks(self._pod_stats(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=piece)

    def _pod_stats(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        selector = dict(wanted.label_selector)
        return self._pods(
            [
                view
                for view in self._runtime.sandboxes()
                if view.ready and view.id.startswith(wanted.id) and selected(view.spec.labels, selector)
            ]
        )

    def _pods(self, wanted: list[SandboxView]) -> list[pb.PodSandboxStats]:
        found = self._runtime.meter.pods(wanted, self._runtime.sandboxes(), self._runtime.containers())
        return [stats.pod(reading) for reading in found]

    def ListMetricDescriptors(
        self, _request: pb.ListMetricDescriptorsRequest, _call: Call
    ) -> pb.ListMetricDescriptorsResponse:
        """Every metric there can be."""
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    def ListPodSandboxMetrics(
        self, _request: pb.ListPodSandboxMetricsRequest, _call: Call
    ) -> pb.ListPodSandboxMetricsResponse:
        """The metrics of all pods that are ready."""
        response = pb.ListPodSandboxMetricsResponse()
        for read in self._samples():
            metrics.fill(response.pod_metrics.add(), read)
        return response

    def StreamPodSandboxMetrics(
        self, _request: pb.StreamPodSandboxMetricsRequest, _call: Call
    ) -> Iterator[pb.StreamPodSandboxMetricsResponse]:
        """The same in pieces."""
        # A pod's metrics are as long as fifty of its stats.
        for piece in chunks(self._samples(), 20):
            response = pb.StreamPodSandboxMetricsResponse()
            for read in piece:
                metrics.fill(response.pod_sandbox_metrics.add(), read)
            yield response

    def _samples(self) -> list[PodSamples]:
        ready = [view for view in self._runtime.sandboxes() if view.ready]
        return self._runtime.meter.samples(ready, self._runtime.containers())
