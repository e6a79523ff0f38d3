"""A blob as a stream: verified while it passes, resumed with Range after a cut, failed when it stalls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from forgeone_shim.errors import Unavailable
from forgeone_shim.registry.digest import encoded, hasher
from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.manifest import Compression, Descriptor, sniff
from forgeone_shim.registry.origin import Body, Origin
from forgeone_shim.registry.source import CorruptBlob
from forgeone_shim.registry.transport import TransportError

CHUNK: Final = 256 * 1024
_MAX_FRUITLESS: Final = 6


class BlobStream:
    """The compressed bytes of one layer, with ``readinto`` and ``read`` for whoever unpacks them.

    One reader at a time. ``copy`` is a file descriptor that also gets every byte. Nothing read here can be trusted
    before :meth:`verify` has returned. ``failure`` is why reading stopped, whatever the reader made of it.
    """

    def __init__(
        self,
        source: Origin,
        blob: Descriptor,
        endpoints: Sequence[Endpoint],
        *,
        on_bytes: Callable[[int], None] | None = None,
        copy: int | None = None,
    ) -> None:
        self._source = source
        self._session = source.session
        self._blob = blob
        self._endpoints = tuple(endpoints)
        self._on_bytes = on_bytes
        self._copy = copy
        self._hash = hasher(blob.digest)
        self._response: Body | None = None
        self._done = 0
        self._head = b""
        self._fruitless = 0
        self._waiting_since = 0.0
        self.failure: Exception | None = None

    @property
    def done(self) -> int:
        """Bytes received so far."""
        return self._done

    def compression(self) -> Compression:
        """How the blob is packed by its first bytes, which stay to be read."""
        head = memoryview(bytearray(4))
        while len(self._head) < 4 and (got := self._receive(head[: 4 - len(self._head)])):
            self._head += head[:got]
        return sniff(self._head)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill some of the buffer; 0 at the end.

        :raises Unavailable: when the layer stalled or cannot be fetched any more; it names the layer.
        """
        view = memoryview(buffer)
        if self._head:
            got = min(len(self._head), len(view))
            view[:got] = self._head[:got]
            self._head = self._head[got:]
            return got
        return self._receive(view)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; without a size, up to one chunk."""
        buffer = bytearray(min(size, CHUNK) if size >= 0 else CHUNK)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def verify(self) -> None:
        """Read what is left and compare the digest.

        :raises CorruptBlob: when the bytes are not the ones asked for.
        """
        rest = memoryview(bytearray(CHUNK))
        while self._receive(rest):
            pass
        if self._hash.hexdigest() != encoded(self._blob.digest):
            raise CorruptBlob(
                f"layer {self._blob.digest}: its {self._done} bytes have another digest", fix="push the image again"
            )

    def close(self) -> None:
        """Let the connection go; safe to call twice."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _receive(self, view: memoryview) -> int:
        try:
            return self._next_piece(view)
        except Exception as error:
            self.failure = error
            raise

    def _next_piece(self, view: memoryview) -> int:
        self._waiting_since = time.monotonic()  # what the reader did meanwhile is no stall of the registry's
        while self._done < self._blob.size and len(view):
            self._session.check(f"while fetching layer {self._blob.digest}")
            try:
                if self._response is None:
                    self._response = self._source.open_blob(self._blob, self._done, self._endpoints)
                got = self._response.readinto(view[: self._blob.size - self._done], self._patience())
            except (TransportError, TimeoutError, Unavailable) as error:
                self._lost(error)
                continue
            if not got:
                self._lost(None)
                continue
            piece = view[:got]
            self._hash.update(piece)
            if self._copy is not None:
                write_all(self._copy, piece)
            self._done += got
            self._fruitless = 0
            if self._on_bytes is not None:
                self._on_bytes(got)
            return got
        return 0

    def _patience(self) -> float:
        """Half of the progress timeout for this connection, so that a fresh one has its chance in the other half."""
        left = self._session.patience - (time.monotonic() - self._waiting_since)
        return max(0.001, min(left, self._session.patience / 2))

    def _lost(self, error: Exception | None) -> None:
        """Give up the connection; raise when there is no hope, else return to try again from where it broke."""
        self.close()
        self._session.check(f"while fetching layer {self._blob.digest}")
        at = f"layer {self._blob.digest}: {self._done} of {self._blob.size} bytes came"
        why = "the connection was cut" if error is None else str(error) or "nothing came"
        idle = time.monotonic() - self._waiting_since
        if idle >= self._session.patience:
            raise Unavailable(f"{at}, then no progress for {self._session.patience:g} s: {why}") from None
        self._fruitless += 1
        if self._fruitless > _MAX_FRUITLESS:
            raise Unavailable(f"{at}: {why}") from None
        if self._fruitless > 1:
            pause = min(0.1 * 2**self._fruitless, self._session.patience - idle)
            self._session.cancelled.wait(self._session.deadline.remaining(pause))


def write_all(fd: int, data: memoryview) -> None:
    """Write every byte to a file."""
    while len(data):
        data = data[os.write(fd, data) :]
