"""The kernel out of its ``bzImage``, as the ELF image that a monitor enters without running the decompressor.

Documentation/arch/x86/boot.rst of the kernel has the header.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from engines.microvm.boot import unpacking
from engines.microvm.boot.elf import MAGIC, Elf
from forgeone_shim.errors import FailedPrecondition

_HEADER_AT: Final = 0x202
_HEADER_MAGIC: Final = b"HdrS"
# Protocol 2.08 has the payload's place.
_PROTOCOL: Final = 0x0208
_BANNER: Final = re.compile(rb"Linux version ([!-~]{1,128}) ")
_VERSION: Final = re.compile(rb"([!-~]{1,128}) ")


@dataclass(frozen=True, slots=True)
class Kernel:
    """``image`` is an ELF file with a PVH entry; ``release`` is what ``uname -r`` says in it."""

    image: bytes
    release: str


def extract(data: bytes, name: str) -> Kernel:
    """The kernel of a ``bzImage``, or of an ELF file, called ``name``.

    :raises FailedPrecondition: it is neither, or cannot be entered by PVH (CONFIG_PVH).
    """
    image = data if data.startswith(MAGIC) else unpacking.unpack(_payload(data, name), name)
    if not Elf(image, name).enters_by_pvh():
        raise FailedPrecondition(f"{name} has no PVH entry: it was built without CONFIG_PVH")
    return Kernel(image, release(image, name))


def release(data: bytes, name: str) -> str:
    """Which release of Linux a ``bzImage`` or an uncompressed kernel is, without decompressing it.

    :raises FailedPrecondition: it does not say so.
    """
    if data.startswith(MAGIC):
        found = _BANNER.search(data)
    else:
        # kernel_version: where the text is, from the end of the boot sector.
        found = _VERSION.match(data, struct.unpack_from("<H", data, 0x20E)[0] + 0x200) if _is_bzimage(data) else None
    if found is None:
        raise FailedPrecondition(f"{name} does not say which release of Linux it is")
    return found[1].decode()


def _is_bzimage(data: bytes) -> bool:
    return data[_HEADER_AT : _HEADER_AT + 4] == _HEADER_MAGIC and len(data) >= 0x250


def _payload(data: bytes, name: str) -> bytes:
    if not _is_bzimage(data):
        raise FailedPrecondition(f"{name} is neither a bzImage nor an ELF file")
    sectors, protocol = data[0x1F1], struct.unpack_from("<H", data, 0x206)[0]
    if protocol < _PROTOCOL:
        raise FailedPrecondition(f"{name} is of boot protocol {protocol >> 8}.{protocol & 0xFF:02}, older than 2.08")
    offset, length = struct.unpack_from("<II", data, 0x248)
    # The offset counts from the protected-mode code; 0 sectors of set-up mean 4.
    start = ((sectors or 4) + 1) * 512 + offset
    if start + length > len(data):
        raise FailedPrecondition(f"{name} is cut short")
    return data[start : start + length]
