"""From a layer blob to archive bytes: one thread decompresses and hashes, another reads the archive.

Both ISA-L and OpenSSL let go of the interpreter while they work, so the two threads use two cores. Memory is bounded
by the number of chunks in flight.
"""

from __future__ import annotations

import os
from _queue import SimpleQueue
from _thread import start_new_thread

from forgeone_shim.fs.tar import BLOCK, bad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from hashlib import _Hash
    from types import ModuleType
    from typing import IO

CHUNK = 1 << 18
_IN_FLIGHT = 8
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# A zstd frame may demand a window of 2 GiB; this is what the zstd tool itself allows without being asked.
_ZSTD_WINDOW_MAX = 1 << 27


def decompress(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Uncompressed chunks of what ``read`` returns piece by piece (``b""`` at its end).

    What the blob is its magic number says: media types are often wrong, and the diffID decides anyway.
    """
    head = b""
    while len(head) < 4 and (piece := read()):
        head += piece
    if head.startswith(_GZIP):
        return _gunzip(head, read)
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return _unzstd(head, read)
    return _plain(head, read)


def _plain(head: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    while head:
        yield head
        head = read()


# A decoder is imported when a blob calls for it, yet before its first chunk: the unpack process chroots in between.


def _gunzip(head: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    from isal import igzip_lib

    return _members(igzip_lib, head, read)


def _members(igzip: ModuleType, data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    """Gzip members one after the other, as ``pigz`` and estargz write them."""
    try:
        while data:
            member = igzip.IgzipDecompressor(flag=igzip.DECOMP_GZIP)
            while True:
                chunk = member.decompress(data, CHUNK)
                if chunk:
                    yield chunk
                if member.eof:
                    break
                data = read() if member.needs_input else b""
                if member.needs_input and not data:
                    raise bad("the gzip stream is cut short")
            data = member.unused_data or read()
    except igzip.IsalError as error:
        raise bad(f"broken gzip stream: {error}") from error


def _unzstd(head: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    import zstandard

    return _frames(zstandard, head, read)


def _frames(zstandard: ModuleType, data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    source: IO[bytes] = _Pieces(data, read)  # type: ignore[assignment]  # only read() is called
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    try:
        with decompressor.stream_reader(source, read_across_frames=True) as reader:
            while chunk := reader.read(CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise bad(f"broken zstd stream: {error}") from error


class _Pieces:
    """What zstandard takes for a file: ``read`` may return fewer bytes than it is asked for, and here more."""

    def __init__(self, head: bytes, read: Callable[[], bytes]) -> None:
        self._head = head
        self._read = read

    def read(self, _size: int = -1) -> bytes:
        piece, self._head = self._head or self._read(), b""
        return piece


def hashed(chunks: Iterator[bytes], digest: _Hash) -> Iterator[bytes]:
    """The same chunks, each fed to ``digest`` on its way."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, made by a thread of their own a few chunks ahead; its errors are raised here.

    The thread is not joined: only for a process that ends when the consumer gives up.
    """
    ready: SimpleQueue[bytes | BaseException] = SimpleQueue()
    room: SimpleQueue[None] = SimpleQueue()
    for _ in range(_IN_FLIGHT):
        room.put(None)

    def produce() -> None:
        try:
            for chunk in chunks:
                room.get()
                ready.put(chunk)
            ready.put(b"")
        except BaseException as error:
            ready.put(error)

    start_new_thread(produce, ())
    while True:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        if not item:
            return
        yield item
        room.put(None)


class Archive:
    """The uncompressed stream as :func:`forgeone_shim.fs.tar.entries` and the extractor read it."""

    __slots__ = ("_at", "_chunk", "_chunks", "_end", "_view")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = self._end = 0

    def _refill(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._view, self._at, self._end = chunk, memoryview(chunk), 0, len(chunk)
                return True
        return False

    def block(self) -> bytes | None:
        """The next 512 bytes, or ``None`` at a clean end."""
        at = self._at
        if self._end - at >= BLOCK:
            self._at = at + BLOCK
            return self._chunk[at : at + BLOCK]
        if at == self._end and not self._refill():
            return None
        return self.take(BLOCK)

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        parts = []
        while count:
            parts.append(bytes(self._some(count)))
            count -= len(parts[-1])
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Pass over exactly ``count`` bytes."""
        left = self._end - self._at
        if count <= left:
            self._at += count
            return
        while count:
            count -= len(self._some(count))

    def copy_to(self, fd: int, count: int) -> None:
        """Write exactly ``count`` bytes to a file."""
        while count:
            piece = self._some(count)
            count -= len(piece)
            while (written := os.write(fd, piece)) < len(piece):
                piece = piece[written:]

    def drain(self) -> None:
        """Read to the very end: what follows the archive counts for the hash."""
        while self._refill():
            pass

    def _some(self, at_most: int) -> memoryview:
        if self._at == self._end and not self._refill():
            raise bad("the archive is cut short")
        at = self._at
        self._at = min(self._end, at + at_most)
        return self._view[at : self._at]
