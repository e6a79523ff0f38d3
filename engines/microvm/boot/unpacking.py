"""The compressions that kernels and their modules come in."""

from __future__ import annotations

import ctypes
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

import zstandard

from forgeone_shim.errors import FailedPrecondition

# No kernel and no module is larger; what says so is damaged.
LIMIT: Final = 512 * 1024 * 1024
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
# lz4's legacy frame: blocks of so many bytes, the last may be shorter.
_LZ4_BLOCK: Final = 8 * 1024 * 1024
_LIBLZ4: Final = "liblz4.so.1"


def unpack(data: bytes, name: str) -> bytes:
    """What ``data`` holds, called ``name``: as it is, where it begins like no compression that is known here.

    Bytes behind the compressed ones are left out, as a kernel's image has its size there.

    :raises FailedPrecondition: it is damaged, or this host has no library for it.
    """
    kind = next((kind for magic, kind in _KINDS if data.startswith(magic)), None)
    if kind is None:
        return data
    try:
        return kind(data)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError, EOFError, struct.error) as error:
        raise FailedPrecondition(f"{name} cannot be decompressed: {error}") from None


def _gzip(data: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data)


def _xz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(), data)


def _whole(decompressor: zlib._Decompress | lzma.LZMADecompressor, data: bytes) -> bytes:
    made = decompressor.decompress(data, LIMIT)
    if not decompressor.eof:
        raise ValueError("it is cut short, or too large")
    return made


def _zstd(data: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    made = decompressor.decompress(data)
    if not decompressor.eof:
        raise ValueError("it is cut short")
    return made


def _lz4(data: bytes) -> bytes:
    try:
        decompress = ctypes.CDLL(_LIBLZ4).LZ4_decompress_safe
    except OSError:
        raise FailedPrecondition(f"{_LIBLZ4} is missing", fix="apt-get install -y liblz4-1") from None
    decompress.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    room, made, at = ctypes.create_string_buffer(_LZ4_BLOCK), bytearray(), len(_LZ4_LEGACY)
    while True:
        (size,) = struct.unpack_from("<I", data, at)
        block = data[at + 4 : at + 4 + size]
        got = decompress(block, room, len(block), _LZ4_BLOCK)
        if len(block) < size or got < 0 or len(made) + got > LIMIT:
            raise ValueError("a block is damaged")
        made += memoryview(room)[:got]
        at += 4 + size
        # A kernel's size is behind the last block, where another block's would be.
        if got < _LZ4_BLOCK or data[at:] in {b"", struct.pack("<I", len(made))}:
            return bytes(made)


_KINDS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\x00", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (_LZ4_LEGACY, _lz4),
)
