"""From a reference to unpacked layers: resolve, then fetch what is missing, several layers at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, ForgeError, ResourceExhausted
from forgeone_shim.package import image as packages
from forgeone_shim.package import media
from forgeone_shim.package.verification import Trust
from forgeone_shim.registry.artifacts import EMPTY_CONFIG
from forgeone_shim.registry.digest import algorithm, encoded, is_digest, matches
from forgeone_shim.registry.manifest import (
    MAX_CONFIG,
    MAX_INDEX_DEPTH,
    Compression,
    ConfigFile,
    Descriptor,
    Index,
    Manifest,
    Platform,
    artifact_file,
    check_platform,
    choose,
    is_shared,
    layer_format,
    parse_config,
)
from forgeone_shim.registry.model import LayerProgress, LayerState
from forgeone_shim.registry.origin import Origin
from forgeone_shim.registry.source import CorruptBlob
from forgeone_shim.registry.stream import BlobStream, write_all
from forgeone_shim.registry.transport import Cancelled, Session

Listener = Callable[[LayerProgress], None]


class LayerUsage(Protocol):
    """What an unpacked layer takes on disk."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def inodes(self) -> int:
        """Files of every kind."""


class ByteStream(Protocol):
    """What a layer is unpacked from."""

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill some of the buffer; 0 at the end."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""


class Layers(Protocol):
    """What images need of the store of unpacked layers."""

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there, whole."""

    def unpack(
        self,
        diff_id: str,
        compression: Compression,
        stream: ByteStream,
        deadline: Deadline,
        *,
        verify: Callable[[], None] | None = None,
    ) -> LayerUsage:
        """Unpack and commit a layer; ``verify`` is called right before and may raise to prevent it."""

    def keep(
        self, layer_id: str, file: str, stream: ByteStream, deadline: Deadline, *, verify: Callable[[], None]
    ) -> LayerUsage:
        """Store the stream as the only file of a layer; ``verify`` is called right before the commit."""

    def remove(self, diff_id: str) -> None:
        """Delete a layer; one that is not there is no error."""

    def ids(self) -> Iterable[str]:
        """Every layer that is there."""

    def info(self, diff_id: str) -> LayerUsage:
        """What a layer takes on disk."""

    def path(self, diff_id: str) -> Path:
        """The tree of a layer that is there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer to have, and the blob it is made from; ``file`` is the name of an artifact's, ``keep`` the blob too."""

    diff_id: str
    blob: Descriptor
    file: str = ""
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means now. ``target`` is the digest its tag points at: an index, if it is one.

    ``shared`` says that this index has a WebAssembly module beside an image for this platform. ``kept`` are blobs that
    are kept beside the layers that they became, whatever is done with others. ``evidence`` is the digest of that one of
    the documents that says who stands behind the image.
    """

    target: str
    manifest_digest: str
    manifest: Manifest
    file: ConfigFile
    documents: Mapping[str, bytes]
    shared: bool = False
    kept: tuple[str, ...] = ()
    evidence: str = ""

    def wanted(self, *, keep: bool = False) -> list[Wanted]:
        """Each different layer once, largest first, so that the longest work starts first; ``keep``: and every blob."""
        layers = self.manifest.layers
        files = [part.file for part in self.manifest.parts] or [""] * len(layers)
        found = {
            diff_id: Wanted(diff_id, layer, file, keep or layer.digest in self.kept)
            for diff_id, layer, file in zip(self.file.diff_ids, layers, files, strict=True)
        }
        return sorted(found.values(), key=lambda wanted: -wanted.blob.size)


def resolve(source: Origin, platform: Platform, trust: Callable[[], Trust], *, modules_first: bool = False) -> Resolved:
    """Ask what the reference is: through indexes to the manifest for this platform, and its config.

    :param trust: what is asked of a package, should it be one.
    :param modules_first: where there is a choice, take the WebAssembly module.
    :raises NotFound: when the registry does not have it, or not for this platform.
    :raises PermissionDenied: it is a package that nobody who is trusted has signed.
    """
    reference = source.reference
    document = source.manifest(reference.digest or reference.tag)
    target, documents, shared = document.digest, {document.digest: document.data}, False
    for _ in range(MAX_INDEX_DEPTH):
        if not isinstance(document.content, Index):
            break
        shared = shared or is_shared(document.content, platform)
        chosen = choose(document.content, platform, str(reference), modules_first=modules_first)
        document = source.manifest(chosen.digest)
        documents[document.digest] = document.data
    parsed = document.content
    if isinstance(parsed, Index):
        raise FailedPrecondition(f"{reference}: more than {MAX_INDEX_DEPTH} indexes inside each other")
    if parsed.artifact == media.ARTIFACT:
        found = packages.resolve(source, parsed, trust())
        documents |= found.documents
        return Resolved(target, document.digest, found.manifest, found.file, documents, shared, found.kept)
    if parsed.artifact:
        if parsed.config.media_type != EMPTY_CONFIG and parsed.config.size <= MAX_CONFIG:
            documents[parsed.config.digest] = source.document(parsed.config)
        file = artifact_file(parsed, documents.get(parsed.config.digest))
        return Resolved(target, document.digest, parsed, file, documents, shared)
    config = source.document(parsed.config)
    documents[parsed.config.digest] = config
    file = parse_config(config, parsed, f"config {parsed.config.digest}")
    check_platform(file, platform, str(reference))
    return Resolved(target, document.digest, parsed, file, documents, shared)


class BlobFolder:
    """Files named by their digest, below one folder. Files appear whole or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        """Where the blob of this (well-formed) digest is."""
        if not is_digest(digest):
            raise FailedPrecondition(f"{digest[:100]!r} is not a digest")
        return self._root / algorithm(digest) / encoded(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is there; nobody has looked at its bytes."""
        return self.path(digest).exists()

    def write(self, digest: str, data: bytes) -> None:
        """Keep a small blob."""
        with self.incoming(digest) as fd:
            write_all(fd, memoryview(data))

    def read(self, digest: str) -> bytes | None:
        """A blob's bytes, or ``None`` when it is not there or no longer what its digest says."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            return None
        return data if matches(digest, data) else None

    @contextmanager
    def incoming(self, digest: str) -> Iterator[int]:
        """A file to write; it gets its name when the block ends well and is gone when it does not."""
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with ExitStack() as stack:
            stack.callback(os.close, folder)
            # A file without a name cannot outlive this process.
            fd = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            yield fd
            target.unlink(missing_ok=True)
            # Given a folder, Python follows the link to the open file; the path itself is absolute.
            os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=folder, follow_symlinks=True)

    def retain(self, wanted: set[str], candidates: Iterable[str] | None = None) -> None:
        """Delete the candidates (all blobs, if not given) that are not wanted."""
        for digest in self.digests() if candidates is None else candidates:
            if digest not in wanted:
                self.path(digest).unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """Every blob that is there."""
        return [
            digest
            for folder in sorted(self._root.glob("sha*"))
            for file in sorted(folder.iterdir())
            if is_digest(digest := f"{folder.name}:{file.name}")
        ]

    def usage(self) -> tuple[int, int]:
        """Bytes and files."""
        sizes = [file.stat().st_size for digest in self.digests() if (file := self.path(digest)).exists()]
        return sum(sizes), len(sizes)


class Turns:
    """Who is fetching which layer in this process, so that images that share one fetch it once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[str] = set()

    @contextmanager
    def take(self, diff_id: str, session: Session) -> Iterator[None]:
        """Wait until nobody else fetches this layer, then be the one who may."""
        session.on_cancel(self._wake)
        with self._changed:
            while diff_id in self._busy:
                session.check(f"while another pull fetches layer {diff_id}")
                self._changed.wait(session.deadline.remaining())
            self._busy.add(diff_id)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(diff_id)
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class LayerFetcher:
    """Brings the layers of an image onto this node."""

    def __init__(self, layers: Layers, turns: Turns, blobs: BlobFolder, parallel: int, *, keep: bool) -> None:
        """``keep``: the blob of every layer, beside what it became."""
        self._layers = layers
        self._turns = turns
        self._blobs = blobs
        self._parallel = parallel
        self._keep = keep

    def fetch(self, source: Origin, resolved: Resolved, listener: Listener) -> None:
        """Fetch and unpack every layer that is missing. When one fails the others are stopped.

        :raises ForgeError: the first failure; the layer is named.
        """
        wanted = resolved.wanted(keep=self._keep)
        missing: list[Wanted] = []
        for layer in wanted:
            here, blob = self._here(layer), layer.blob
            listener(LayerProgress(blob.digest, blob.size, 0, LayerState.EXISTS if here else LayerState.WAITING))
            if not here:
                missing.append(layer)
        if not missing:
            return
        workers = min(self._parallel, len(missing))
        with ThreadPoolExecutor(workers, thread_name_prefix="layer") as pool:
            tasks = [pool.submit(self._one, source, layer, listener) for layer in missing]
            done, waiting = wait(tasks, return_when=FIRST_EXCEPTION)
            if waiting:
                source.session.cancel()
        failures = [error for task in (*done, *waiting) if (error := task.exception())]
        if failures:
            raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])

    def _here(self, layer: Wanted) -> bool:
        return self._layers.has(layer.diff_id) and (not layer.keep or self._blobs.has(layer.blob.digest))

    def _one(self, source: Origin, layer: Wanted, listener: Listener) -> None:
        blob = layer.blob
        with self._turns.take(layer.diff_id, source.session):
            if self._here(layer):
                listener(LayerProgress(blob.digest, blob.size, 0, LayerState.EXISTS))
                return
            source.session.check(f"before layer {blob.digest}")
            endpoints = source.blob_endpoints()
            for skip in range(max(1, len(endpoints))):
                try:
                    self._bring(source, layer, skip, listener)
                    break
                except CorruptBlob:
                    if skip + 1 >= len(endpoints):
                        raise
            listener(LayerProgress(blob.digest, blob.size, blob.size, LayerState.DONE))

    def _bring(self, source: Origin, layer: Wanted, skip: int, listener: Listener) -> None:
        """Fetch from the endpoints that are left after ``skip`` of them served rubbish."""
        blob, done = layer.blob, 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            listener(LayerProgress(blob.digest, blob.size, done, LayerState.DOWNLOADING))

        with ExitStack() as stack:
            copy = stack.enter_context(self._blobs.incoming(blob.digest)) if layer.keep else None
            stream = BlobStream(source, blob, source.blob_endpoints()[skip:], on_bytes=count, copy=copy)
            stack.callback(stream.close)
            try:
                self._store(source, layer, stream)
            except Exception as error:
                raise _cause(error, stream, f"{source.reference}: layer {blob.digest}") from None

    def _store(self, source: Origin, layer: Wanted, stream: BlobStream) -> None:
        deadline = source.session.deadline
        if self._layers.has(layer.diff_id):
            # Of a layer that came before blobs were kept, or from another image, the blob alone is missing.
            stream.verify()
            return
        if layer.file:
            self._layers.keep(layer.diff_id, layer.file, stream, deadline, verify=stream.verify)
            return
        packed = layer_format(layer.blob, str(source.reference)) or stream.compression()
        self._layers.unpack(layer.diff_id, packed, stream, deadline, verify=stream.verify)


def _cause(error: Exception, stream: BlobStream, name: str) -> Exception:
    """What really went wrong: the stream's own failure, bytes that are not the right ones, or what unpacking says."""
    if stream.failure is not None:
        return stream.failure
    if not isinstance(error, ForgeError) or isinstance(error, CorruptBlob):
        return error
    if not isinstance(error, DeadlineExceeded | ResourceExhausted):
        try:
            stream.verify()
        except Exception as found:
            if isinstance(found, CorruptBlob | Cancelled):
                return found
    error.what = f"{name}: {error.what}"
    return error
