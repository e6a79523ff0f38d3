"""bpf(2) by ctypes: maps, programs and where they are pinned. No compiler, no library.

Every descriptor is the caller's to close and is close-on-exec, as the kernel makes them. Errors are OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

from forgeone_shim.kernel.syscalls import number, syscall

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD, _PIN, _GET = range(8)
_MAP_BY_ID, _RAW_TRACEPOINT_OPEN = 14, 17
_RAW_TRACEPOINT: Final = 17
_LOG_BYTES: Final = 256 * 1024
_LOG_SHOWN: Final = 2000
_NAME_BYTES: Final = 15


class MapType(IntEnum):
    """``enum bpf_map_type``, those that are used here."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    ARRAY_OF_MAPS = 12
    RINGBUF = 27


def create_map(
    kind: MapType, key_size: int, value_size: int, entries: int, *, inner: int = 0, flags: int = 0, name: str = ""
) -> int:
    """A new map's descriptor; ``inner`` is one of a map as those that a map of maps is to hold."""
    attr = struct.pack(
        "<IIIIIII15sx", kind, key_size, value_size, entries, flags, inner, 0, name.encode()[:_NAME_BYTES]
    )
    return _bpf(_MAP_CREATE, attr)


def load_program(code: bytes, licence: str, name: str) -> int:
    """The descriptor of a raw tracepoint's program.

    :raises OSError: the kernel refuses it; the last words of its verifier are in the message.
    """
    text, licensed = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(licence.encode())

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        size, at, level = (0, 0, 0) if log is None else (len(log), ctypes.addressof(log), 1)
        attr = struct.pack(
            "<IIQQIIQII15sx",
            _RAW_TRACEPOINT,
            len(code) // 8,
            ctypes.addressof(text),
            ctypes.addressof(licensed),
            level,
            size,
            at,
            0,
            0,
            name.encode()[:_NAME_BYTES],
        )
        return _bpf(_PROG_LOAD, attr)

    try:
        return load(None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return load(log)
        except OSError as again:
            said = log.value.decode(errors="replace").strip()[-_LOG_SHOWN:]
            raise OSError(again.errno, f"{os.strerror(again.errno or 0)}: {said}") from None


def attach_raw_tracepoint(program: int, name: str) -> int:
    """The descriptor of a link: the program runs at the tracepoint for as long as that is open or pinned."""
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", ctypes.addressof(text), program))


def map_by_id(id_: int) -> int:
    """The descriptor of a map; what a map of maps says of those in it is their ids."""
    return _bpf(_MAP_BY_ID, struct.pack("<III", id_, 0, 0))


def lookup(map_fd: int, key: bytes, size: int) -> bytes | None:
    """The value of a key, ``None`` where there is none; ``size`` is what the kernel writes (of every processor)."""
    value = ctypes.create_string_buffer(size)
    held = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_LOOKUP, struct.pack("<I4xQQQ", map_fd, ctypes.addressof(held), ctypes.addressof(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key."""
    held, given = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _bpf(_UPDATE, struct.pack("<I4xQQQ", map_fd, ctypes.addressof(held), ctypes.addressof(given), 0))


def delete(map_fd: int, key: bytes) -> None:
    """Forget a key; a missing one is no error."""
    held = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_DELETE, struct.pack("<I4xQQQ", map_fd, ctypes.addressof(held), 0, 0))
    except FileNotFoundError:
        return


def keys(map_fd: int, size: int) -> list[bytes]:
    """The keys of a map that nobody else changes meanwhile."""
    found: list[bytes] = []
    following = ctypes.create_string_buffer(size)
    at = 0
    while True:
        try:
            _bpf(_NEXT_KEY, struct.pack("<I4xQQQ", map_fd, at, ctypes.addressof(following), 0))
        except FileNotFoundError:
            return found
        found.append(following.raw)
        held = ctypes.create_string_buffer(following.raw, size)
        at = ctypes.addressof(held)


def pin(fd: int, path: Path) -> None:
    """Keep what a descriptor stands for beyond this process, at a path in a bpf file system."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_PIN, struct.pack("<QII", ctypes.addressof(text), fd, 0), path=path)


def get(path: Path) -> int:
    """The descriptor of what is pinned there."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_GET, struct.pack("<QII", ctypes.addressof(text), 0, 0), path=path)


def possible_cpus() -> int:
    """So many values a per-CPU map has for each key, of processors that may yet come too."""
    found = 0
    for piece in Path("/sys/devices/system/cpu/possible").read_text().strip().split(","):
        first, _, last = piece.partition("-")
        found += int(last or first) - int(first) + 1
    return found


def _bpf(command: int, attr: bytes, *, path: object = None) -> int:
    held = ctypes.create_string_buffer(attr, len(attr))
    return syscall(number("bpf"), command, ctypes.addressof(held), len(attr), path=path)
