"""Where an image comes from, as far as bringing it here is concerned: a registry, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.manifest import Descriptor
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Document
from forgeone_shim.registry.transport import Session


class Body(Protocol):
    """A blob's bytes as they come."""

    def readinto(self, buffer: memoryview, at_most: float | None = None, /) -> int:
        """Fill some of the buffer, within so many seconds; 0 at the end."""

    def close(self) -> None:
        """Nothing more is wanted."""


class Origin(Protocol):
    """What :class:`~forgeone_shim.registry.source.Source` is for a registry."""

    @property
    def session(self) -> Session:
        """The pull it is for."""

    @property
    def reference(self) -> Reference:
        """What is wanted."""

    def manifest(self, reference: str, /) -> Document:
        """The manifest or index that a tag or digest names; NotFound."""

    def document(self, blob: Descriptor, /) -> bytes:
        """A small blob, verified."""

    def blob_endpoints(self) -> list[Endpoint]:
        """Who may be asked for content by digest, best first."""

    def open_blob(self, blob: Descriptor, offset: int, endpoints: Sequence[Endpoint], /) -> Body:
        """The body of a blob from ``offset`` on; nothing has verified it."""
