"""What the keeper and the file server say to each other: one JSON document a packet (:mod:`forgeone_shim.shim.wire`).

The server takes what the keeper has sent before it takes anything more from the guest: a volume is there for whatever
the guest is told after :class:`Add` was sent, answered or not.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from forgeone_shim.shim.wire import ProtocolError

NUMBER_MAX: Final = (1 << 31) - 1
Number = Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
Ticket = Annotated[int, msgspec.Meta(ge=0)]


class Volume(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A directory or regular file, by the descriptor (O_PATH) at the same place among those of the packet.

    ``number`` is its name below the root of the guest's mount; none is given twice in a machine's life. For ``common``
    and ``live`` see :meth:`engines.microvm.shares.nodes.Nodes.add_volume`.
    """

    number: Number
    readonly: bool = False
    common: bool = False
    live: bool = False


class Add(msgspec.Struct, tag_field="kind", tag="add", forbid_unknown_fields=True, frozen=True):
    """Serve these too: all of them, or none."""

    ticket: Ticket
    volumes: tuple[Volume, ...]


class Remove(msgspec.Struct, tag_field="kind", tag="remove", forbid_unknown_fields=True, frozen=True):
    """Let go of these, open files and all; one that is not there is no error."""

    ticket: Ticket
    numbers: tuple[Number, ...]


class Done(msgspec.Struct, tag_field="kind", tag="done", forbid_unknown_fields=True, frozen=True):
    """It is so."""

    ticket: Ticket


class Failed(msgspec.Struct, tag_field="kind", tag="failed", forbid_unknown_fields=True, frozen=True):
    """Nothing of it was done."""

    ticket: Ticket
    message: str


class Broken(msgspec.Struct, tag_field="kind", tag="broken", forbid_unknown_fields=True, frozen=True):
    """The server's last word: the guest sent what no FUSE client sends, and is not served any more."""

    message: str


Order = Add | Remove
Answer = Done | Failed | Broken
_ORDERS: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)
_ANSWERS: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


def encode(message: Order | Answer) -> bytes:
    """A packet's bytes."""
    return msgspec.json.encode(message)


def decode_order(data: bytes | bytearray) -> Order:
    """:raises ProtocolError: it is none."""
    try:
        return _ORDERS.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"no order for the file server: {error}") from error


def decode_answer(data: bytes | bytearray) -> Answer:
    """:raises ProtocolError: it is none."""
    try:
        return _ANSWERS.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"no answer of a file server's: {error}") from error
