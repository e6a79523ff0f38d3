"""Content digests: the two algorithms ForgeOne trusts, and nothing else.

https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

_FORM = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


class Hasher(Protocol):
    """What hashlib's objects do. ``update`` releases the interpreter for anything but tiny pieces."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of what was taken in so far, in hexadecimal."""


def is_digest(text: str) -> bool:
    """Whether this is a well-formed sha256 or sha512 digest."""
    return _FORM.fullmatch(text) is not None


def algorithm(digest: str) -> str:
    """``sha256`` or ``sha512``; the digest must be well-formed."""
    return digest.partition(":")[0]


def encoded(digest: str) -> str:
    """The hexadecimal part."""
    return digest.partition(":")[2]


def hasher(digest: str) -> Hasher:
    """A fresh hash object for the algorithm of this digest."""
    return hashlib.new(algorithm(digest), usedforsecurity=True)


def digest_of(data: bytes, name: str = "sha256") -> str:
    """The digest of these bytes."""
    return f"{name}:{hashlib.new(name, data, usedforsecurity=True).hexdigest()}"


def matches(digest: str, data: bytes) -> bool:
    """Whether the bytes are the ones the digest names."""
    return digest_of(data, algorithm(digest)) == digest
