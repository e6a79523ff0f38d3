"""What containers use, read while answering."""

from __future__ import annotations

from collections.abc import Iterator

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.chunks import chunks
from cri.runtime.verbs import Verbs, selected
from cri.translate import stats
from cri.translate.fields import given


class StatsVerbs(Verbs):
    """ContainerStats, ListContainerStats, StreamContainerStats."""

    def ContainerStats(self, request: pb.ContainerStatsRequest, _call: Call) -> pb.ContainerStatsResponse:
        """What one container uses; of one that has ended only its name is told."""
        view = self._runtime.container(given("container_id", request.container_id))
        return pb.ContainerStatsResponse(stats=stats.container(view, self._usage(view.pid, view.id)))

    def ListContainerStats(self, request: pb.ListContainerStatsRequest, _call: Call) -> pb.ListContainerStatsResponse:
        """The same of all that fit the filter and have a process."""
        return pb.ListContainerStatsResponse(stats=self._container_stats(request.filter))

    def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, _call: Call
    ) -> Iterator[pb.StreamContainerStatsResponse]:
        """The same in pieces."""
        for piece in chunks(self._container_stats(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=piece)

    def _container_stats(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        selector = dict(wanted.label_selector)
        return [
            stats.container(view, self._usage(view.pid, view.id))
            for view in self._runtime.containers()
            if view.pid
            and view.id.startswith(wanted.id)
            and view.sandbox_id.startswith(wanted.pod_sandbox_id)
            and selected(view.spec.labels, selector)
        ]
