"""Templates on disk, for the next start of the daemon: a directory each, written whole or not at all.

``memory`` and ``state`` are Zstandard frames with a checksum, of the parts that are no holes, one after the other;
``parts`` says where each belongs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from engines.microvm.templates import sealed
from engines.microvm.templates.keys import Key
from engines.microvm.vmm.base import Template
from forgeone_shim.errors import ForgeError, InternalError, syscall_error

_PARTS: Final = "parts"
_MEMORY, _STATE = "memory", "state"
_PARTS_MAX: Final = 16 << 20
# As a driver bounds it.
_STATE_MAX: Final = 64 << 20
_CHUNK: Final = 1 << 20
# Pods choose their sizes, and each makes a template.
KEPT_MAX: Final = 16
# Half the size of none at all, and as fast as the disk.
_LEVEL: Final = 1

Extents = Sequence[tuple[int, int]]


class _Parts(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Sizes in bytes; ``memory`` and ``state`` are extents: offset and size, in order."""

    memory_size: int
    state_size: int
    memory: tuple[tuple[int, int], ...]
    state: tuple[tuple[int, int], ...]


_DECODER: Final[msgspec.json.Decoder[_Parts]] = msgspec.json.Decoder(_Parts)


class Store:
    """Below one directory, root's alone. Every method may be called by several threads and processes at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, key: Key) -> Template | None:
        """A template that was kept, sealed; the caller closes its descriptors. One that cannot be read is removed."""
        place = self._directory / key.name
        try:
            with ExitStack() as undo:
                parts = _read_parts(place / _PARTS, key)
                memory = _unpack(place / _MEMORY, parts.memory_size, parts.memory, undo)
                state = _unpack(place / _STATE, parts.state_size, parts.state, undo)
                sealed.fill(memory)
                sealed.seal(memory)
                sealed.seal(state)
                # What is used is kept longest.
                os.utime(place)
                undo.pop_all()
                return Template(memory=memory, state=state)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, zstandard.ZstdError, msgspec.MsgspecError, ForgeError):
            shutil.rmtree(place, ignore_errors=True)
            return None

    def save(self, key: Key, template: Template) -> None:
        """Keep a template; one that is there already stays.

        :raises InternalError: it cannot be written. Nothing of it is left.
        """
        place = self._directory / key.name
        draft = self._directory / f".{key.name}.{os.getpid()}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ExitStack() as undo:
                undo.callback(shutil.rmtree, draft, ignore_errors=True)
                draft.mkdir(mode=0o700)
                memory = _pack(template.memory, draft / _MEMORY)
                state = _pack(template.state, draft / _STATE)
                sizes = (os.fstat(template.memory).st_size, os.fstat(template.state).st_size)
                parts = _Parts(memory_size=sizes[0], state_size=sizes[1], memory=memory, state=state)
                (draft / _PARTS).write_bytes(msgspec.json.encode(parts))
                # Onto one that is not empty it cannot be renamed.
                with contextlib.suppress(FileExistsError):
                    if not place.exists():
                        draft.rename(place)
            self._limit()
        except OSError as error:
            raise syscall_error("keep template", place, error) from error

    def _limit(self) -> None:
        kept = [entry for entry in _entries(self._directory) if not entry.name.startswith(".")]
        for entry in sorted(kept, key=_used)[:-KEPT_MAX]:
            shutil.rmtree(entry, ignore_errors=True)

    def remove(self, key: Key) -> None:
        """One that is not there is no error."""
        shutil.rmtree(self._directory / key.name, ignore_errors=True)

    def retain(self, generation: str) -> None:
        """Remove templates of other generations, and what a daemon that was killed has left of one."""
        for entry in _entries(self._directory):
            if entry.name.startswith("."):
                # Of one that is being written the process lives.
                if not Path("/proc", entry.name.rpartition(".")[2]).exists():
                    shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.partition("-")[0] != generation:
                shutil.rmtree(entry, ignore_errors=True)


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from list(directory.iterdir())


def _used(entry: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return entry.stat().st_mtime
    return 0.0


def _read_parts(path: Path, key: Key) -> _Parts:
    if path.stat().st_size > _PARTS_MAX:
        raise InternalError(f"{path} is longer than {_PARTS_MAX} bytes")
    parts = _DECODER.decode(path.read_bytes())
    if parts.memory_size != key.memory or not 0 < parts.state_size <= _STATE_MAX:
        raise InternalError(f"{path} is not of this machine")
    _check(parts.memory, parts.memory_size)
    _check(parts.state, parts.state_size)
    return parts


def _check(parts: Extents, size: int) -> None:
    end = 0
    for at, length in parts:
        if at < end or length <= 0 or at + length > size:
            raise InternalError("parts of a file are not in it, or not in order")
        end = at + length


def _pack(fd: int, path: Path) -> tuple[tuple[int, int], ...]:
    found = tuple(sealed.extents(fd))
    with open(path, "xb") as file, zstandard.ZstdCompressor(_LEVEL, write_checksum=True).stream_writer(file) as packed:
        for at, length in found:
            for offset in range(at, at + length, _CHUNK):
                packed.write(os.pread(fd, min(_CHUNK, at + length - offset), offset))
    return found


def _unpack(path: Path, size: int, parts: Extents, undo: ExitStack) -> int:
    fd = sealed.make("template", size)
    undo.callback(os.close, fd)
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as packed:
        for at, length in parts:
            offset = at
            while offset < at + length:
                data = packed.read(min(_CHUNK, at + length - offset))
                if not data:
                    raise InternalError(f"{path} is too short")
                os.pwrite(fd, data, offset)
                offset += len(data)
        # The checksum is compared when the end is read.
        if packed.read(1):
            raise InternalError(f"{path} is too long")
    return fd
