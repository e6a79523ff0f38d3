"""What happens, as it happens."""

from __future__ import annotations

from collections.abc import Iterator

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.translate import events


class EventVerbs(Verbs):
    """GetContainerEvents."""

    def GetContainerEvents(self, _request: pb.GetEventsRequest, call: Call) -> Iterator[pb.ContainerEventResponse]:
        """Every creation, start, end and removal of a pod or container from now on, in order.

        Once the client has the answer's headers, nothing that happens later is missing. What happened since an earlier
        stream broke, or forgeoned was started, comes first, if that is not long ago. A client that is too far behind
        gets RESOURCE_EXHAUSTED after the last event it can have.
        """
        feed = self._runtime.listen()
        call.deadline.listen(feed.close)
        try:
            call.begin()
            for happening in feed:
                yield from events.responses(happening)
        finally:
            feed.close()
