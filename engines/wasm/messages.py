"""What is said to the zygote and what it answers: one JSON document a message.

What only a forked child needs is left to it to read (``plan``): a request that is not as it should be ends the child.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from engines.wasm.aot.target import Kind, Variant
from engines.wasm.card import Identity, Limits
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.jail.plan import JailPlan
from forgeone_shim.shim.supervision import Failed, Launched, Supervision
from forgeone_shim.shim.wire import ProtocolError

# Another one for each change of what is said, here or in what is said in it.
VERSION: Final = 3


class Code(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Compiled code, whose file is the first of the descriptors that come with the message."""

    key: str
    kind: Kind
    variant: Variant


class Create(msgspec.Struct, tag_field="kind", tag="create", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A container: :class:`Container` is in ``plan``. Its supervisor answers."""

    code: Code
    plan: msgspec.Raw


class Execute(msgspec.Struct, tag_field="kind", tag="execute", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One more guest in a container: :class:`Execution` is in ``plan``.

    Beside the code come a pidfd of the container's first process and the streams 0, 1 and 2.
    """

    code: Code
    plan: msgspec.Raw


class Preload(msgspec.Struct, tag_field="kind", tag="preload", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Have this code ready."""

    code: Code


class Forget(msgspec.Struct, tag_field="kind", tag="forget", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Let go of all code but that of these keys."""

    keep: frozenset[str]


class Init(msgspec.Struct, tag_field="kind", tag="init", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The first process of a pod's PID namespace, in the jail that is in ``plan``."""

    sandbox_id: str
    plan: msgspec.Raw


class Insight(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a guest may know of its container, and whether its calls are recorded; the files for both in ``bundle``."""

    bundle: str
    identity: Identity
    limits: Limits
    trace: bool = False


class Container(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All that a container is made of, besides its code."""

    supervision: Supervision
    jail: JailPlan
    guest: GuestPlan
    insight: Insight


class Execution(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A guest beside a container's own."""

    container_id: str
    jail: JailPlan
    guest: GuestPlan
    insight: Insight
    tty: bool = False


class Done(msgspec.Struct, tag_field="kind", tag="done", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """It is so."""


class Executing(
    msgspec.Struct, tag_field="kind", tag="executing", forbid_unknown_fields=True, frozen=True, kw_only=True
):
    """The guest runs; whoever asked ends it by ending the connection."""


class Ended(msgspec.Struct, tag_field="kind", tag="ended", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The guest has ended, with this exit code."""

    code: int


Request = Create | Execute | Preload | Forget | Init
Answer = Done | Executing | Ended | Launched | Failed
Plan = TypeVar("Plan", Container, Execution, JailPlan)

_REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_ANSWERS: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)
# Made before any fork: a child that had to would take longer for it, and more memory, than for all the rest.
_PLANS: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Container, Execution, JailPlan)
}


def encode(message: Request | Answer | Container | Execution | JailPlan) -> bytes:
    """The message as it travels."""
    return msgspec.json.encode(message)


def decode_request(data: bytes | bytearray) -> Request:
    """Strictly.

    :raises ProtocolError: it is none of the requests.
    """
    try:
        return _REQUESTS.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error


def decode_plan(data: msgspec.Raw, kind: type[Plan]) -> Plan:
    """What a request left to its child.

    :raises ProtocolError: it is not of that kind.
    """
    try:
        found: Plan = _PLANS[kind].decode(data)
        return found
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error


def decode_answer(data: bytes | bytearray) -> Answer:
    """Strictly.

    :raises ProtocolError: it is none of the answers.
    """
    try:
        return _ANSWERS.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error
