"""What forgeoned and its watch of the cluster say to each other: a JSON document a line, over a socket. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

MAX_LINE: Final = 8 << 20
"""Bytes: an object of an API server has at most 1.5 MiB (etcd's limit for a request), and JSON may escape it."""


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """A list of all objects begins; each comes as :class:`Came`, and the end as :class:`Listed`."""


class Came(msgspec.Struct, frozen=True, tag="came"):
    """An object, as it is now: what of it decides anything (``given``), and which one it is.

    ``fault`` is why its ``spec`` is not there, where it is nothing that could be handed on.
    """

    uid: str
    generation: int
    given: dict[str, Any]
    fault: str = ""


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """An object was deleted."""

    name: str


class Listed(msgspec.Struct, frozen=True, tag="listed"):
    """Those that came since :class:`Begun` are all there are."""


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """The API server answers, and nothing has changed."""


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """The API server cannot be asked; it will be tried again."""

    why: str


class Unsaid(msgspec.Struct, frozen=True, tag="unsaid"):
    """The cluster could not be told what the node thinks of a policy."""

    why: str


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """What the node thinks of one generation of an object; ``why`` is empty where it can be used."""

    name: str
    uid: str
    generation: int
    why: str


Told = Begun | Came | Gone | Listed | Heard | Trouble | Unsaid

_encode = msgspec.json.Encoder()
_told = msgspec.json.Decoder(Told)
_verdict = msgspec.json.Decoder(Verdict)


def line(message: Told | Verdict) -> bytes:
    """A message as it is sent."""
    return _encode.encode(message) + b"\n"


def told(data: bytes) -> Told:
    """:raises ValueError: it is no message of the watch's."""
    found: Told = _told.decode(data)
    return found


def verdict(data: bytes) -> Verdict:
    """:raises ValueError: it is no verdict."""
    return _verdict.decode(data)


class Lines:
    """Bytes as they come, cut into lines."""

    def __init__(self, longest: int = MAX_LINE) -> None:
        self._longest = longest
        self._left = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now. :raises ValueError: one is longer than any message."""
        self._left += data
        if b"\n" not in data:
            found: list[bytes] = []
        else:
            *whole, rest = bytes(self._left).split(b"\n")
            found, self._left = whole, bytearray(rest)
        if len(self._left) > self._longest or any(len(one) > self._longest for one in found):
            raise ValueError(f"a line is longer than {self._longest} bytes")
        return found
