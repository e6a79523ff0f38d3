"""A store of layers that unpacks with the standard library: slow, but it does what the real one promises."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry.fetch import ByteStream
from forgeone_shim.registry.manifest import Compression


@dataclass(frozen=True, slots=True)
class Usage:
    size: int
    inodes: int


class DirectoryLayers:
    """One directory a layer; ``unpacked`` records every unpack that was begun."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self.unpacked: list[str] = []
        root.mkdir(parents=True)

    def path(self, diff_id: str) -> Path:
        return self._root / diff_id.partition(":")[2]

    def has(self, diff_id: str) -> bool:
        return self.path(diff_id).is_dir()

    def unpack(
        self,
        diff_id: str,
        compression: Compression,
        stream: ByteStream,
        deadline: Deadline,
        *,
        verify: Callable[[], None] | None = None,
    ) -> Usage:
        with self._lock:
            self.unpacked.append(diff_id)
        plain = io.BytesIO()
        expand = _expander(compression)
        buffer = bytearray(64 * 1024)
        while got := stream.readinto(buffer):
            deadline.check("while unpacking")
            try:
                plain.write(expand(bytes(buffer[:got])))
            except (zlib.error, zstandard.ZstdError) as error:
                raise FailedPrecondition(f"layer {diff_id}: {error}") from error
        if f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}" != diff_id:
            raise FailedPrecondition(f"layer {diff_id}: its content has another digest")
        half_made = Path(tempfile.mkdtemp(prefix="half-", dir=self._root))
        try:
            plain.seek(0)
            with tarfile.open(fileobj=plain) as tar:
                tar.extractall(half_made)
            if verify is not None:
                verify()
            half_made.replace(self.path(diff_id))
        except BaseException:
            shutil.rmtree(half_made)
            raise
        return self.info(diff_id)

    def keep(
        self, layer_id: str, file: str, stream: ByteStream, deadline: Deadline, *, verify: Callable[[], None]
    ) -> Usage:
        content, buffer = bytearray(), bytearray(64 * 1024)
        while got := stream.readinto(buffer):
            content += buffer[:got]
        verify()
        target = self.path(layer_id) / file
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
        return self.info(layer_id)

    def remove(self, diff_id: str) -> None:
        shutil.rmtree(self.path(diff_id), ignore_errors=True)

    def ids(self) -> Iterable[str]:
        return [f"sha256:{entry.name}" for entry in self._root.iterdir() if not entry.name.startswith("half-")]

    def half_made(self) -> list[Path]:
        return list(self._root.glob("half-*"))

    def info(self, diff_id: str) -> Usage:
        files = [file for file in self.path(diff_id).rglob("*") if file.is_file()]
        return Usage(sum(file.stat().st_size for file in files), len(files))


def _expander(compression: Compression) -> Callable[[bytes], bytes]:
    if compression == "gzip":
        return zlib.decompressobj(31).decompress
    if compression == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress
    return lambda data: data
