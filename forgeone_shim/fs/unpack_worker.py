"""The process that unpacks one layer: ``python -I -S -c BOOT ...`` started by :mod:`forgeone_shim.fs.unpack`.

It reads the blob from descriptor 0, works in the directory that is descriptor 3, chrooted there, and answers on
descriptor 1 with the fields of :func:`main`, NUL between them. Nothing it does needs cleaning up but that directory.
"""

from __future__ import annotations

import os
import resource
from _hashlib import openssl_sha256

from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.fs.extract import Extractor
from forgeone_shim.fs.stream import CHUNK, Archive, ahead, decompress, hashed

BLOB, ANSWER, WORKSHOP = 0, 1, 3
TREE, TRASH, IMPLIED = "fs", "trash", "implied"
OK = "ok"

# Far above what any layer needs (a zstd window of 128 MiB is the most), far below what would hurt the host.
_MEMORY_MAX = 1 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def main() -> None:
    """Unpack and answer ``ok, sha256, size, inodes, opaque root`` or ``error kind, message``; does not return.

    Size and inodes are 0 where entries replaced others and only a look at the tree can tell.
    """
    try:
        answer = _unpack()
    except ForgeError as error:
        answer = (error.kind.value, getattr(error, "reason", error.what))
    except MemoryError:
        answer = (Kind.EXHAUSTED.value, "unpacking the layer needs more memory than it may take")
    except OSError as error:
        answer = (Kind.INTERNAL.value, f"unpack: {error}")
    _write("\0".join(answer).encode())
    # The decompressing thread may still be waiting for input.
    os._exit(0)


def _unpack() -> tuple[str, ...]:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_MAX, _MEMORY_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.set_inheritable(WORKSHOP, False)
    os.mkdir(TREE, 0o755, dir_fd=WORKSHOP)
    os.mkdir(TRASH, 0o700, dir_fd=WORKSHOP)
    tree = os.open(TREE, _DIRECTORY, dir_fd=WORKSHOP)
    trash = os.open(TRASH, _DIRECTORY, dir_fd=WORKSHOP)
    digest = openssl_sha256()
    archive = Archive(ahead(hashed(decompress(lambda: os.read(BLOB, CHUNK)), digest)))
    _confine(tree)
    extractor = Extractor(tree, trash, archive, descriptors=b"")
    extractor.run()
    archive.drain()
    os.fchmod(tree, 0o755)
    os.utime(tree, ns=(0, 0))
    os.rmdir(TRASH, dir_fd=WORKSHOP)
    if extractor.implied:
        _store_implied(extractor.implied)
    size, inodes = (0, 0) if extractor.replaced else (extractor.size, extractor.inodes)
    return OK, digest.hexdigest(), str(size), str(inodes), str(int(extractor.opaque_root))


def _confine(tree: int) -> None:
    """A second wall: with the layer as its root, this process could not follow a path out of it.

    The working directory is ``/proc/self/fd``, through which attributes of symlinks and devices are set.
    """
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(tree)
    if os.geteuid() == 0:
        os.chroot(".")
    os.fchdir(descriptors)
    os.close(descriptors)


def _store_implied(paths: list[bytes]) -> None:
    fd = os.open(IMPLIED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=WORKSHOP)
    with os.fdopen(fd, "wb") as file:
        file.write(b"\0".join(paths))


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(ANSWER, data) :]
