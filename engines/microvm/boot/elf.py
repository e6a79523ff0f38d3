"""The little of ELF (gABI, 64 bits, little-endian) that kernels and their modules are asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import FailedPrecondition

MAGIC: Final = b"\x7fELF\x02\x01\x01"
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_NOTE: Final = struct.Struct("<III")
_PT_INTERP: Final = 3
_PT_NOTE: Final = 4
_SHT_NOBITS: Final = 8
# XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h): where a kernel is entered by PVH.
_PVH_ENTRY: Final = 18


@dataclass(frozen=True, slots=True)
class Elf:
    """A file's bytes; every part of it is looked for within them."""

    data: bytes
    name: str

    def section(self, wanted: bytes) -> bytes | None:
        """What a section holds, ``None`` where there is none of that name."""
        header = self._header()
        offset, size, count, names = header[6], header[11], header[12], header[13]
        if not count:
            return None
        if size != _SECTION.size or names >= count:
            raise self._fault()
        table = [self._unpack(_SECTION, offset + number * size) for number in range(count)]
        titles = self._slice(table[names][4], table[names][5])
        for entry in table:
            end = titles.find(b"\0", entry[0])
            if entry[1] != _SHT_NOBITS and end >= 0 and titles[entry[0] : end] == wanted:
                return self._slice(entry[4], entry[5])
        return None

    def enters_by_pvh(self) -> bool:
        """Whether it has the note that a monitor enters an uncompressed kernel by."""
        return any(owner == b"Xen" and kind == _PVH_ENTRY for owner, kind in self._notes())

    def has_interpreter(self) -> bool:
        """Whether it needs a dynamic linker."""
        return any(entry[0] == _PT_INTERP for entry in self._programs())

    def _programs(self) -> Iterator[tuple[int, ...]]:
        header = self._header()
        for number in range(header[10]):
            yield self._unpack(_PROGRAM, header[5] + number * _PROGRAM.size)

    def _notes(self) -> Iterator[tuple[bytes, int]]:
        for entry in self._programs():
            if entry[0] != _PT_NOTE:
                continue
            notes, at = self._slice(entry[2], entry[5]), 0
            while at + _NOTE.size <= len(notes):
                owner, content, kind = _NOTE.unpack_from(notes, at)
                at += _NOTE.size
                yield notes[at : at + owner].rstrip(b"\0"), kind
                at += _aligned(owner) + _aligned(content)

    def _header(self) -> tuple[int, ...]:
        if not self.data.startswith(MAGIC):
            raise self._fault()
        return self._unpack(_HEADER, 0)

    def _unpack(self, kind: struct.Struct, at: int) -> tuple[int, ...]:
        return kind.unpack(self._slice(at, kind.size))

    def _slice(self, at: int, size: int) -> bytes:
        if at + size > len(self.data):
            raise self._fault()
        return self.data[at : at + size]

    def _fault(self) -> FailedPrecondition:
        return FailedPrecondition(f"{self.name} is no ELF file of 64 bits, or is cut short")


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
