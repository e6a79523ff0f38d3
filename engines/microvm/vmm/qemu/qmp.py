"""The QEMU Machine Protocol (docs/interop/qmp-spec): lines of JSON over a stream; parsed without any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

# Far more than any answer to what is asked here.
LINE_MAX: Final = 256 * 1024
# What may be told between two looks; QEMU itself holds back what comes more often.
EVENTS_MAX: Final = 1024


class QmpError(ValueError):
    """What came is not what a QEMU says."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first thing that is said; ``version`` is QEMU's, major, minor and micro."""

    version: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Returned:
    """A command has succeeded."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A command has not; ``id`` is -1 where it could not even be read."""

    id: int
    message: str


@dataclass(frozen=True, slots=True)
class Happened:
    """An event (QMP's name in capitals) and what is said of it."""

    name: str
    data: Mapping[str, Any]


Message = Greeting | Returned | Refused | Happened


_NOTHING: Final = msgspec.Raw(b"")


class _Error(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="class")
    desc: str


class _Numbers(msgspec.Struct, frozen=True):
    major: int
    minor: int
    micro: int


class _Version(msgspec.Struct, frozen=True):
    qemu: _Numbers


class _Hello(msgspec.Struct, frozen=True):
    version: _Version


class _Line(msgspec.Struct, frozen=True):
    hello: _Hello | None = msgspec.field(name="QMP", default=None)
    value: msgspec.Raw = msgspec.field(name="return", default=_NOTHING)
    error: _Error | None = None
    event: str | None = None
    data: dict[str, Any] = {}
    id: int = -1


_LINES: Final[msgspec.json.Decoder[_Line]] = msgspec.json.Decoder(_Line)


class Parser:
    """Bytes in, messages out."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """What is whole by now.

        :raises QmpError: it is none of QEMU's; the parser is of no use then.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        if max(map(len, (*lines, rest))) > LINE_MAX:
            raise QmpError(f"a line is longer than {LINE_MAX} bytes")
        self._rest = rest
        return [_message(line) for line in lines if line.strip()]


def _message(text: bytes) -> Message:
    try:
        line = _LINES.decode(text)
        if bytes(line.value):
            return Returned(line.id, msgspec.json.decode(line.value))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise QmpError(f"a line cannot be read: {error}") from error
    if line.error is not None:
        return Refused(line.id, line.error.desc)
    if line.event is not None:
        return Happened(line.event, line.data)
    if line.hello is not None:
        seen = line.hello.version.qemu
        return Greeting((seen.major, seen.minor, seen.micro))
    raise QmpError("a line is neither an answer nor an event")


def command(name: str, number: int, arguments: Mapping[str, object]) -> bytes:
    """A command as it travels."""
    return msgspec.json.encode({"execute": name, "id": number, "arguments": arguments}) + b"\n"
