"""An entry of the audit log: a CloudEvent in JSON.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and formats/json-format.md
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

import msgspec

from forgeone_shim.errors import FailedPrecondition

TYPE_PREFIX: Final = "dev.forgeone."
MAX_ENTRY: Final = 2**16 - 1
"""Bytes: bundles give the length of an entry in 16 bits."""

MAX_TEXT: Final = 2048
"""Characters of one text; what is longer is cut, and its hash is told."""

SPEC_VERSION: Final = "1.0"
_JSON: Final = "application/json"
_NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened to whom, and when.

    :param type: after ``dev.forgeone.``: ``container.started``.
    :param subject: ``container/ID``, ``sandbox/ID``, ``image/DIGEST``, ``node``.
    :param data: plain JSON values.
    :param at: nanoseconds since the epoch; ``monotonic`` on the clock that is never set, since the host's boot.
    """

    type: str
    subject: str
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    at: int = field(default_factory=time.time_ns)
    monotonic: int = field(default_factory=time.monotonic_ns)


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same as it is written; ``source`` is the log's origin, ``id`` the entry's index there."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    monotonic: str
    data: dict[str, Any]


def encode(entry: Entry, origin: str, index: int) -> bytes:
    """The entry as it is logged, at most :data:`MAX_ENTRY` bytes: what it says is cut rather than refused."""
    data = {key: _short(value) for key, value in entry.data.items()}
    try:
        made = _encoded(entry, origin, index, data)
    except (TypeError, ValueError, RecursionError) as error:
        # That it happened is to be known, even where what came with it (half a character, say) is no JSON.
        return _encoded(entry, origin, index, {"unreadable": ascii(error)[:MAX_TEXT]})
    if len(made) <= MAX_ENTRY:
        return made
    # Whom it is about is said all the same, however much somebody made of the rest.
    made = _encoded(entry, origin, index, {key: _summed(value) for key, value in data.items()})
    return made if len(made) <= MAX_ENTRY else _encoded(entry, origin, index, _sum(msgspec.json.encode(data)))


def decode(data: bytes) -> Event:
    """Read an entry. :raises FailedPrecondition: it is none, naming the field."""
    try:
        found = msgspec.json.decode(data, type=Event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FailedPrecondition(f"not an audit entry: {str(error)[:200]}") from None
    for name, wanted in (("specversion", SPEC_VERSION), ("datacontenttype", _JSON)):
        if getattr(found, name) != wanted:
            raise FailedPrecondition(f"not an audit entry: {name} is not {wanted!r}")
    if not found.id.isdecimal() or not found.monotonic.isdecimal() or not found.type.startswith(TYPE_PREFIX):
        raise FailedPrecondition("not an audit entry: id, monotonic or type is none of this log's")
    return found


def rfc3339(at: int) -> str:
    """Nanoseconds since the epoch as text, to the nanosecond (RFC 3339)."""
    seconds, rest = divmod(at, _NANO)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _encoded(entry: Entry, origin: str, index: int, data: dict[str, Any]) -> bytes:
    return msgspec.json.encode(
        Event(
            specversion=SPEC_VERSION,
            id=str(index),
            source=origin,
            type=TYPE_PREFIX + entry.type,
            subject=entry.subject[:MAX_TEXT],
            time=rfc3339(entry.at),
            datacontenttype=_JSON,
            # As text: CloudEvents' integers have 32 bits.
            monotonic=str(entry.monotonic),
            data=data,
        )
    )


def _summed(value: Any) -> Any:
    whole = msgspec.json.encode(value)
    return _sum(whole) if len(whole) > MAX_TEXT else value


def _sum(whole: bytes) -> dict[str, Any]:
    return {"bytes": len(whole), "sha256": sha256(whole).hexdigest()}


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        digest = sha256(value.encode("utf-8", "replace")).hexdigest()
        return f"{value[:MAX_TEXT]}… (sha256:{digest})"
    return value
