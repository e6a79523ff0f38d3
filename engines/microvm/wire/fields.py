"""Fields to bytes and back, by the annotations of a message's struct; without I/O, strict in both directions."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from engines.microvm.wire.protocol import NUMBER_MAX, REQUEST_MAX, Tag
from forgeone_shim.errors import InvalidInput

U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1
_HEAD: Final = struct.Struct("<HI")
_NUMBER: Final = struct.Struct("<HIQ")
_VALUE: Final = struct.Struct("<Q")

MessageType = TypeVar("MessageType", bound=msgspec.Struct)


class ProtocolError(Exception):
    """The other side said what the protocol does not have; ``field`` is where."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class FieldType(IntEnum):
    """How a field's bytes are read."""

    NUMBER = 0
    TEXT = 1
    BYTES = 2
    GROUP = 3


@dataclass(frozen=True, slots=True)
class Of:
    """A field's tag, and its bounds: of a number, or of the bytes of a text; what is sent is ``offset`` more.

    ``least``: how many of a list there are at least.
    """

    tag: Tag
    low: int = 0
    high: int | None = None
    offset: int = 0
    least: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A field of a struct. ``python`` makes its value of a number; ``group`` is the struct of a group."""

    name: str
    tag: Tag
    shape: FieldType
    low: int
    high: int
    offset: int
    least: int
    many: bool
    default: Any
    python: type[Any]

    @property
    def required(self) -> bool:
        """It has to be there."""
        return self.default is msgspec.NODEFAULT or self.least > 0


@cache
def rules(kind: type[msgspec.Struct]) -> tuple[Rule, ...]:
    """The fields of a struct, in its order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_rule(one.name, hints[one.name], one.default) for one in msgspec.structs.fields(kind))


def _rule(name: str, hint: Any, default: Any) -> Rule:
    kind, of = get_args(hint)
    many = get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    elif get_origin(kind) in (UnionType, Union):
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    what = _type(kind)
    high = of.high if of.high is not None else (U64 if what is FieldType.NUMBER else REQUEST_MAX)
    if kind is bool:
        high = 1
    return Rule(name, of.tag, what, of.low, high, of.offset, of.least, many, default, kind)


def _type(kind: type[Any]) -> FieldType:
    if issubclass(kind, int):
        return FieldType.NUMBER
    if issubclass(kind, str):
        return FieldType.TEXT
    return FieldType.BYTES if issubclass(kind, bytes) else FieldType.GROUP


def encode(message: msgspec.Struct) -> bytes:
    """The message's fields.

    :raises InvalidInput: a value is outside of its bounds, or there are more than :data:`REQUEST_MAX` bytes; ``field``
        is its path in the message.
    """
    out = bytearray()
    _encode(message, out, "")
    if len(out) > REQUEST_MAX:
        raise InvalidInput(type(message).__name__.lower(), f"{len(out)} bytes are more than {REQUEST_MAX}")
    return bytes(out)


def numbered(payload: bytes, process: int) -> bytes:
    """A CREATE or EXEC without a process's number, with it.

    :raises InvalidInput: it becomes too large by it, or this is no such number.
    """
    if len(payload) + _NUMBER.size > REQUEST_MAX:
        raise InvalidInput("payload", f"{len(payload)} bytes leave no room for the process's number")
    if not 0 <= process < NUMBER_MAX:
        raise InvalidInput("process", f"{process} is not within 0 and {NUMBER_MAX - 1}")
    return payload + _NUMBER.pack(Tag.PROCESS, 8, process)


def _encode(message: msgspec.Struct, out: bytearray, path: str) -> None:
    for rule in rules(type(message)):
        value = getattr(message, rule.name)
        where = path + rule.name
        if rule.many:
            if len(value) < rule.least:
                raise InvalidInput(where, f"needs at least {rule.least}")
            for index, one in enumerate(value):
                _put(rule, one, out, f"{where}[{index}]")
        elif rule.default is msgspec.NODEFAULT or value != rule.default:
            _put(rule, value, out, where)


def _put(rule: Rule, value: Any, out: bytearray, where: str) -> None:
    if rule.shape is FieldType.NUMBER:
        if not rule.low <= value <= rule.high:
            raise InvalidInput(where, f"{value} is not within {rule.low} and {rule.high}")
        out += _NUMBER.pack(rule.tag, 8, value + rule.offset)
        return
    if rule.shape is FieldType.GROUP:
        at = len(out)
        out += _HEAD.pack(rule.tag, 0)
        _encode(value, out, where + ".")
        _HEAD.pack_into(out, at, rule.tag, len(out) - at - _HEAD.size)
        return
    if rule.shape is FieldType.TEXT:
        if "\0" in value:
            raise InvalidInput(where, "has a NUL")
        try:
            value = value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(where, "is no text that UTF-8 has") from error
    if not rule.low <= len(value) <= rule.high:
        raise InvalidInput(where, f"{len(value)} bytes are not within {rule.low} and {rule.high}")
    out += _HEAD.pack(rule.tag, len(value))
    out += value


def decode(kind: type[MessageType], data: bytes | bytearray | memoryview) -> MessageType:
    """What the other side said.

    :raises ProtocolError: it is not such a message.
    """
    if len(data) > REQUEST_MAX:
        raise ProtocolError("", f"{len(data)} bytes are more than {REQUEST_MAX}")
    return _decode(kind, memoryview(data), "")


@cache
def _by_tag(kind: type[msgspec.Struct]) -> dict[int, Rule]:
    return {int(rule.tag): rule for rule in rules(kind)}


def _decode(kind: type[MessageType], data: memoryview, path: str) -> MessageType:
    known = _by_tag(kind)
    found: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        if end - at < _HEAD.size:
            raise ProtocolError(path.rstrip("."), "ends in the middle of a field")
        tag, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        rule = known.get(tag)
        if rule is None:
            raise ProtocolError(path.rstrip("."), f"has no field {tag}")
        where = path + rule.name
        if size > end - at:
            raise ProtocolError(where, f"{size} bytes are more than there are")
        value = _take(rule, data[at : at + size], where)
        at += size
        if rule.many:
            found.setdefault(rule.name, []).append(value)
        elif rule.name in found:
            raise ProtocolError(where, "is there twice")
        else:
            found[rule.name] = value
    for rule in known.values():
        if rule.many:
            found[rule.name] = tuple(found.get(rule.name, ()))
            if len(found[rule.name]) < rule.least:
                raise ProtocolError(path + rule.name, "is missing")
        elif rule.name not in found and rule.default is msgspec.NODEFAULT:
            raise ProtocolError(path + rule.name, "is missing")
    return kind(**found)


def _take(rule: Rule, data: memoryview, where: str) -> Any:
    if rule.shape is FieldType.NUMBER:
        if len(data) != _VALUE.size:
            raise ProtocolError(where, f"a number has 8 bytes, not {len(data)}")
        value: int = _VALUE.unpack(data)[0] - rule.offset
        if not rule.low <= value <= rule.high:
            raise ProtocolError(where, f"{value} is not within {rule.low} and {rule.high}")
        return rule.python(value)
    if rule.shape is FieldType.GROUP:
        return _decode(cast("type[msgspec.Struct]", rule.python), data, where + ".")
    if not rule.low <= len(data) <= rule.high:
        raise ProtocolError(where, f"{len(data)} bytes are not within {rule.low} and {rule.high}")
    if rule.shape is FieldType.BYTES:
        return bytes(data)
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(where, "is not UTF-8") from error
    if "\0" in text:
        raise ProtocolError(where, "has a NUL")
    return text
