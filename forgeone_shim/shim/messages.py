"""What is said to the server that makes namespaces and what it answers: one JSON document a message.

Each request has a connection of its own. Descriptors travel beside an answer, in the order that it names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from forgeone_shim.shim.wire import ProtocolError

# Another one for each change of what is said.
VERSION = 2
MESSAGE_MAX = 65536


class Extent(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A line of ``/proc/PID/uid_map`` (user_namespaces(7))."""

    inside: int
    outside: int
    length: int


class MakeNamespaces(
    msgspec.Struct, tag_field="kind", tag="make-namespaces", forbid_unknown_fields=True, frozen=True, kw_only=True
):
    """A new user namespace, and namespaces of ``kinds`` that belong to it.

    ``hostname`` is set in a new UTS namespace unless empty. ``sysctls`` are files below ``/proc/sys`` and what to write
    to them as the new namespace's root.
    """

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]
    kinds: tuple[str, ...]
    hostname: str
    sysctls: tuple[tuple[str, str], ...]


class Made(msgspec.Struct, tag_field="kind", tag="made", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Done; beside it come descriptors of the namespaces."""

    kinds: tuple[str, ...]


class Failed(msgspec.Struct, tag_field="kind", tag="failed", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``step`` (``sysctl:PATH`` for one of those) failed with ``errno``; nothing was made."""

    step: str
    errno: int


Request = MakeNamespaces
Answer = Made | Failed

_REQUESTS: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """The message as it travels.

    :raises ProtocolError: it is longer than :data:`MESSAGE_MAX`.
    """
    data = msgspec.json.encode(message)
    if len(data) > MESSAGE_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is longer than {MESSAGE_MAX}")
    return data


def decode_request(data: bytes | bytearray) -> Request:
    """What a client asks for; strictly.

    :raises ProtocolError: it is no such request.
    """
    try:
        return _REQUESTS.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error


def decode_answer(data: bytes, descriptors: Sequence[int]) -> Answer:
    """What the server answers, with as many descriptors as it says.

    :raises ProtocolError: it is none of the answers, or brings more or fewer descriptors.
    """
    try:
        answer = _ANSWERS.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error
    wanted = len(answer.kinds) if isinstance(answer, Made) else 0
    if wanted != len(descriptors):
        raise ProtocolError(f"{len(descriptors)} descriptors came where {wanted} were expected")
    return answer
