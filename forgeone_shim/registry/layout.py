"""An OCI image layout in a tar: images as one file.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md

The archive is never unpacked: its members are found by the names that the layout gives them, and read in place.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.fs import tar
from forgeone_shim.registry.digest import algorithm, encoded, hasher, is_digest, matches
from forgeone_shim.registry.manifest import MAX_MANIFEST, OCI_INDEX, Descriptor, Index, parse_manifest

REF_NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"
"""The whole name of an image, as containerd's and Docker's exports have it; ``REF_NAME`` may be the tag alone."""

_MARK: Final = "oci-layout"
_MARK_TEXT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX: Final = "index.json"
_BLOB = re.compile(r"blobs/(sha256|sha512)/([0-9a-f]{64}|[0-9a-f]{128})")
_MAX_MEMBERS: Final = 200_000
_CHUNK: Final = 1 << 20
_HOW: Final = "forge images export, forge pkg build or skopeo copy ... oci-archive:FILE make one"


class Reader(Protocol):
    """What a blob's bytes are read from."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of the buffer; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to write: so many bytes of whatever ``open`` gives, which is closed afterwards."""

    digest: str
    size: int
    open: Any


class Section:
    """A part of a file, from its beginning to its end; the file is shared, and its offset never moves."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end."""
        wanted = min(len(buffer), self._end - self._at)
        got = os.preadv(self._fd, [buffer[:wanted]], self._at) if wanted else 0
        self._at += got
        return got

    def skip(self, count: int) -> None:
        """Pass over so many bytes."""
        self._at = min(self._end, self._at + count)

    def close(self) -> None:
        """The file stays open."""


class Archive:
    """A layout to read. ``file`` must be seekable, and outlive this.

    :raises InvalidInput: it is no such archive.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._fd, self.name = file.fileno(), name
        self._members = _members(self._fd, name)
        if _MARK not in self._members or _INDEX not in self._members:
            raise InvalidInput("file", f"{name} is no OCI image layout in a tar", fix=_HOW)
        try:
            version = msgspec.json.decode(self._small(_MARK, 4096), type=dict[str, Any]).get("imageLayoutVersion")
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            version = None
        if not isinstance(version, str) or not version.startswith("1."):
            raise InvalidInput("file", f"{name}: a layout of version {str(version)[:40]!r} is not known")
        index = parse_manifest(self._small(_INDEX, MAX_MANIFEST), OCI_INDEX, f"{name}: {_INDEX}")
        if not isinstance(index, Index):
            raise InvalidInput("file", f"{name}: its {_INDEX} is no index")
        self.entries: tuple[Descriptor, ...] = index.entries

    def has(self, digest: str) -> bool:
        """Whether the blob is in the archive."""
        return _path(digest) in self._members

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob, verified.

        :raises NotFound: it is not in the archive. FailedPrecondition: it is another, or larger than ``limit``.
        """
        data = self._small(_path(digest), limit)
        if not matches(digest, data):
            raise FailedPrecondition(f"{self.name}: blob {digest} is not what its digest says")
        return data

    def open(self, digest: str, size: int) -> Section:
        """A blob's bytes, which nothing has verified yet.

        :raises NotFound: it is not in the archive. FailedPrecondition: it is of another size.
        """
        offset, found = self._find(_path(digest))
        if found != size:
            raise FailedPrecondition(f"{self.name}: blob {digest} has {found} bytes, its manifest says {size}")
        return Section(self._fd, offset, found)

    def _find(self, path: str) -> tuple[int, int]:
        if path not in self._members:
            raise NotFound("blob", path.rpartition("blobs/")[2].replace("/", ":"), where=self.name)
        return self._members[path]

    def _small(self, path: str, limit: int) -> bytes:
        offset, size = self._find(path)
        if size > limit:
            raise FailedPrecondition(f"{self.name}: {path} has {size} bytes, more than {limit}")
        return os.pread(self._fd, size, offset)


def write(out: BinaryIO, entries: Iterable[Mapping[str, Any]], blobs: Iterable[Blob]) -> None:
    """Write a layout; ``entries`` are the descriptors of its index. The same arguments give the same bytes."""
    for piece in pieces(entries, blobs):
        out.write(piece)


def pieces(entries: Iterable[Mapping[str, Any]], blobs: Iterable[Blob]) -> Iterator[bytes]:
    """The bytes of a layout, a piece at a time.

    :raises FailedPrecondition: a blob is not what its digest and its size say.
    """
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    for name, data in ((_MARK, _MARK_TEXT), (_INDEX, msgspec.json.encode(index))):
        yield _header(name, len(data)) + data + _padding(len(data))
    for blob in sorted({blob.digest: blob for blob in blobs}.values(), key=lambda blob: blob.digest):
        yield _header(_path(blob.digest), blob.size)
        yield from _content(blob)
        yield _padding(blob.size)
    yield bytes(2 * tar.BLOCK)


def _content(blob: Blob) -> Iterator[bytes]:
    buffer, left, counted = memoryview(bytearray(_CHUNK)), blob.size, hasher(blob.digest)
    source = blob.open()
    try:
        while left and (got := source.readinto(buffer[: min(left, _CHUNK)])):
            counted.update(buffer[:got])
            yield bytes(buffer[:got])
            left -= got
        if left or counted.hexdigest() != encoded(blob.digest):
            raise FailedPrecondition(f"blob {blob.digest} is no longer what its digest says")
    finally:
        source.close()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tar.BLOCK)


def _path(digest: str) -> str:
    if not is_digest(digest):
        raise FailedPrecondition(f"{digest[:100]!r} is not a digest")
    return f"blobs/{algorithm(digest)}/{encoded(digest)}"


class _Source:
    """A file's blocks, by their place."""

    def __init__(self, fd: int) -> None:
        self._fd, self.at, self._size = fd, 0, os.fstat(fd).st_size

    def block(self) -> bytes | None:
        if self.at >= self._size:
            return None
        return self.take(tar.BLOCK)

    def take(self, count: int) -> bytes:
        data = os.pread(self._fd, count, self.at)
        if len(data) != count:
            raise tar.bad("it ends inside a member")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        if count > self._size - self.at:
            raise tar.bad("it ends inside a member")
        self.at += count


def _members(fd: int, name: str) -> dict[str, tuple[int, int]]:
    """Where each part of the layout lies. What is no part of it is passed over, as the specification has it."""
    found: dict[str, tuple[int, int]] = {}
    source = _Source(fd)
    try:
        for count, entry in enumerate(tar.entries(source)):
            path = entry.name.decode("utf-8", "replace").removeprefix("./")
            if path in (_MARK, _INDEX) or _BLOB.fullmatch(path):
                if entry.type != tar.REGULAR or entry.sparse is not None or path in found:
                    raise tar.bad(f"{tar.quoted(entry.name)} is there twice, or is no plain file")
                found[path] = (source.at, entry.size)
            if count >= _MAX_MEMBERS:
                raise tar.bad(f"it has more than {_MAX_MEMBERS} members")
            source.skip(entry.size)
    except InvalidInput as error:
        raise InvalidInput("file", f"{name} is no tar archive: {error.reason}", fix=_HOW) from None
    return found
