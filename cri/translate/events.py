"""Happenings -> ``ContainerEventResponse``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cri.api import runtime_pb2 as pb
from cri.translate import container, sandbox
from forgeone_shim.lifecycle.machine import Event, Subject
from forgeone_shim.runtime.events import Happening

# A pod has no start of its own: it is created started, and kubelets wait for both.
_TYPES: Final[Mapping[tuple[Subject, Event], tuple[pb.ContainerEventType.ValueType, ...]]] = MappingProxyType(
    {
        (Subject.SANDBOX, Event.BOOT): (pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT),
        (Subject.SANDBOX, Event.EXIT): (pb.CONTAINER_STOPPED_EVENT,),
        (Subject.SANDBOX, Event.REMOVE): (pb.CONTAINER_DELETED_EVENT,),
        (Subject.CONTAINER, Event.BOOT): (pb.CONTAINER_CREATED_EVENT,),
        (Subject.CONTAINER, Event.START): (pb.CONTAINER_STARTED_EVENT,),
        (Subject.CONTAINER, Event.EXIT): (pb.CONTAINER_STOPPED_EVENT,),
        (Subject.CONTAINER, Event.REMOVE): (pb.CONTAINER_DELETED_EVENT,),
    }
)


def responses(happening: Happening) -> Iterator[pb.ContainerEventResponse]:
    """What CRI has a word for; none for a pause or the beginning of a stop."""
    made = happening.transition
    for type_ in _TYPES.get((made.subject, made.event), ()):
        yield pb.ContainerEventResponse(
            container_id=made.id,
            container_event_type=type_,
            created_at=made.at,
            pod_sandbox_status=None if happening.sandbox is None else sandbox.status(happening.sandbox),
            containers_statuses=[container.status(view) for view in happening.containers],
        )
