"""Lists of both runtimes, whole or in pieces. Without the other one's answer there is none: what is not in a list is
gone to a kubelet, which kills or makes it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cri.call import Call, Relayed
from cri.runtime.chunks import chunks
from cri.upstream.link import METHODS, Link

STREAMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "StreamPodSandboxes": "ListPodSandbox",
        "StreamContainers": "ListContainers",
        "StreamContainerStats": "ListContainerStats",
        "StreamPodSandboxStats": "ListPodSandboxStats",
    }
)
"""Each list in pieces, and the same as a whole."""

LISTS: Final = frozenset(STREAMS.values())

Behaviour = Callable[[Any, Call], Any]


def unary(name: str, own: Behaviour, request: Message, link: Link, call: Call) -> bytes:
    """One list of both.

    :raises Relayed: the other runtime's is not to be had.
    """
    theirs = link.begin(name, request, call)
    ours: Message = own(request, call)
    # Repeated fields of two messages in a row are those of one (protobuf's encoding, "Last One Wins").
    return ours.SerializeToString() + theirs()


def stream(name: str, own: Behaviour, request: Message, link: Link, call: Call) -> Iterator[Message | bytes]:
    """The same in pieces, also of a runtime that has no such verb.

    :raises Relayed: the other runtime's is not to be had; after ours.
    """
    with link.stream(name, request, call) as theirs:
        yield from own(request, call)
        answered = False
        try:
            for piece in theirs:
                answered = True
                yield piece
        except Relayed as error:
            if answered or error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            yield from _whole(name, request, link, call)


def _whole(name: str, request: Message, link: Link, call: Call) -> Iterator[Message]:
    """What a list says, as a stream of it would."""
    whole = STREAMS[name]
    asked = GetMessageClass(METHODS[whole].input_type)()
    asked.MergeFromString(request.SerializeToString())
    answer = GetMessageClass(METHODS[whole].output_type).FromString(link.ask(whole, asked, call))
    entries = getattr(answer, _entries(METHODS[whole].output_type).name)
    piece = GetMessageClass(METHODS[name].output_type)
    field = _entries(METHODS[name].output_type).name
    for some in chunks(entries):
        yield piece(**{field: some})


def _entries(type_: Any) -> FieldDescriptor:
    """The one field of a list."""
    [field] = type_.fields
    return field  # type: ignore[no-any-return]
