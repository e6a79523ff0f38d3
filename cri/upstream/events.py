"""GetContainerEvents of both runtimes in one stream.

Once a client has the answer's headers it is told of everything that happens later, of either. While the other runtime
does not answer its events wait there; what happened that nobody can tell of any more is seen from what it lists next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import grpc
import structlog

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.upstream.gaps import Listed, Missed, Track, last_status
from cri.upstream.link import Link
from cri.upstream.side import Links

PATIENCE: Final = 5.0
"""Seconds that a client waits for its headers while the other runtime does not answer."""

_PAUSES: Final = (0.1, 0.5, 2.0, 5.0)
_log: structlog.stdlib.BoundLogger = structlog.get_logger("upstream")

Event = pb.ContainerEventResponse | bytes


class Both:
    """The verb. Without another runtime it is ours; a client is asked to come again when there is one."""

    def __init__(self, own: Callable[[Any, Call], Iterator[pb.ContainerEventResponse]], links: Links) -> None:
        self._own, self._links = own, links

    def __call__(self, request: pb.GetEventsRequest, call: Call) -> Iterator[Event]:
        """Events until the client goes.

        :raises Relayed: UNIMPLEMENTED, the other runtime tells of none: a kubelet lists instead then.
        """
        with call.deadline.within() as inner:
            of = replace(call, deadline=inner)
            if self._links.now is None:
                with self._links.when_there(inner.abandon):
                    yield from self._own(request, of)
            else:
                yield from self._merged(request, of)

    def _merged(self, request: pb.GetEventsRequest, call: Call) -> Iterator[Event]:
        junction, listening, synced = Junction(), threading.Event(), threading.Event()
        ours = replace(call, begin=listening.set)

        def own() -> None:
            try:
                with closing(self._own(request, ours)) as events:  # type: ignore[type-var]
                    for event in events:
                        if not junction.put(event):
                            return
                junction.close()
            except Exception as error:
                junction.fail(error)
            finally:
                listening.set()

        def upstream() -> None:
            try:
                Follower(self._links, call, junction, synced).run()
            except Exception as error:
                junction.fail(error)
            finally:
                synced.set()

        try:
            for run in (own, upstream):
                threading.Thread(target=run, name="upstream-events", daemon=True).start()
            listening.wait(call.deadline.remaining())
            synced.wait(call.deadline.remaining())
            call.begin()
            yield from junction
        finally:
            # Both threads end by this: what they wait for is the client's deadline, or that it has taken an event.
            junction.close()
            call.deadline.abandon()


class Junction:
    """Two ways in, one way out: whoever puts something in waits until it is out, so that nothing is lost in between."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[tuple[Event, threading.Event]] = deque()
        self._closed = False
        self._error: Exception | None = None

    def put(self, event: Event) -> bool:
        """Whether it is out. It is not once nobody takes any more."""
        out = threading.Event()
        with self._changed:
            self._queue.append((event, out))
            self._changed.notify_all()
            while not (out.is_set() or self._closed):
                self._changed.wait()
        return out.is_set()

    def fail(self, error: Exception) -> None:
        """After what was put in before, it ends with this."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """It ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not (self._queue or self._closed or self._error):
                    self._changed.wait()
                if self._closed:
                    return
                if not self._queue:
                    break
                event, out = self._queue[0]
            yield event
            with self._changed:
                self._queue.popleft()
                out.set()
                self._changed.notify_all()
        assert self._error is not None  # noqa: S101 - for the type
        raise self._error


class Follower:
    """Listens to the other runtime for one client, again and again, until that has gone."""

    def __init__(self, links: Links, call: Call, junction: Junction, synced: threading.Event) -> None:
        self._links, self._call, self._junction, self._synced = links, call, junction, synced
        self._track = Track()
        self._ended = threading.Event()
        # A stream that ends at once, twice, with nothing wrong is one that never has anything.
        self._empty = 0
        call.deadline.listen(self._ended.set)

    def run(self) -> None:
        """:raises Relayed: UNIMPLEMENTED, it tells of no events."""
        failures = 0
        while not self._ended.is_set():
            link = self._links.wait(self._call.deadline)
            if link is None:
                return
            try:
                heard = self._listen(link)
                failures, self._empty = 0, 0 if heard else self._empty + 1
                if self._empty > 1:
                    raise Relayed(grpc.StatusCode.UNIMPLEMENTED, f"{link.socket} tells of no events")
            except Relayed as error:
                if error.code is grpc.StatusCode.UNIMPLEMENTED:
                    raise
                if not self._ended.is_set():
                    _log.info("no events from the other runtime", socket=link.socket, error=str(error))
                failures += 1
            self._synced.set()
            self._ended.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])

    def _listen(self, link: Link) -> bool:
        """Until the stream ends. Whether there was anything in it."""
        heard = False
        link.answers(self._call, patient=self._synced.is_set(), at_most=PATIENCE)
        with link.stream("GetContainerEvents", pb.GetEventsRequest(), self._call) as stream:
            # Servers say nothing before the first event; one that has answered this has begun with that.
            link.answers(self._call, patient=False, at_most=PATIENCE)
            self._catch_up(link)
            self._synced.set()
            for raw in stream:
                heard = True
                if self._track.news(pb.ContainerEventResponse.FromString(raw)) and not self._junction.put(raw):
                    break
        return heard

    def _catch_up(self, link: Link) -> None:
        now = listed(link, self._call)
        if not self._synced.is_set():
            self._track.begin(now)
            return
        for one in self._track.missed(now):
            if not self._junction.put(self._told(one, now, link)):
                return

    def _told(self, missed: Missed, now: Listed, link: Link) -> pb.ContainerEventResponse:
        containers: list[pb.ContainerStatus] = []
        # Before anything is asked: a kubelet takes no event that is dated before what it knows, so that one dated later
        # than what it shows would hide the next from it.
        status, at = last_status(missed.pod), time.time_ns()
        if missed.pod.id in now.pods:
            try:
                status, containers = self._pod(missed.pod.id, now, link)
            except Relayed as error:
                # It went meanwhile; of that the stream tells.
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
        return pb.ContainerEventResponse(
            container_id=missed.id,
            container_event_type=missed.type,
            created_at=at,
            pod_sandbox_status=status,
            containers_statuses=containers,
        )

    def _pod(self, id_: str, now: Listed, link: Link) -> tuple[pb.PodSandboxStatus, list[pb.ContainerStatus]]:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=id_)
        answer = pb.PodSandboxStatusResponse.FromString(link.ask("PodSandboxStatus", request, self._call))
        containers = list(answer.containers_statuses)
        if not containers:
            for one in now.containers.values():
                if one.pod_sandbox_id == id_:
                    asked = pb.ContainerStatusRequest(container_id=one.id)
                    told = pb.ContainerStatusResponse.FromString(link.ask("ContainerStatus", asked, self._call))
                    containers.append(told.status)
        return answer.status, containers


def listed(link: Link, call: Call) -> Listed:
    """What the other runtime has now.

    :raises Relayed: it does not say, or not in time: a client waits with its headers, and ForgeOne's events, for this.
    """
    containers = link.begin("ListContainers", pb.ListContainersRequest(), call, PATIENCE)
    pods = link.begin("ListPodSandbox", pb.ListPodSandboxRequest(), call, PATIENCE)
    return Listed.of(
        pb.ListPodSandboxResponse.FromString(pods()).items,
        pb.ListContainersResponse.FromString(containers()).containers,
    )
