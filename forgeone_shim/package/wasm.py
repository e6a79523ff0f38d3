"""What the binary of a WebAssembly module says of itself, without compiling it.

https://webassembly.github.io/spec/core/binary/modules.html and
https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from forgeone_shim.errors import InvalidInput

Kind = Literal["module", "component"]

_MAGIC: Final = b"\0asm"
_KINDS: Final[dict[bytes, Kind]] = {b"\x01\0\0\0": "module", b"\x0d\0\x01\0": "component"}
_IMPORTS: Final[dict[Kind, int]] = {"module": 2, "component": 10}
_MAX_IMPORTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Binary:
    """Its kind, and what it imports: a module's modules, a component's interfaces; each once, sorted."""

    kind: Kind
    imports: tuple[str, ...]


def read(data: bytes) -> Binary:
    """Look at a binary.

    :raises InvalidInput: it is no WebAssembly, or malformed where it was looked at.
    """
    kind = _KINDS.get(data[4:8])
    if data[:4] != _MAGIC or kind is None:
        raise InvalidInput("module", "is no WebAssembly module or component", fix="compile it to a .wasm binary")
    names: set[str] = set()
    read_names = _module_imports if kind == "module" else _component_imports
    try:
        for at, end in _sections(data, _IMPORTS[kind]):
            names.update(read_names(_Reader(data, at, end)))
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput("module", f"is malformed: {error}") from None
    return Binary(kind, tuple(sorted(names)))


class _Reader:
    """Reads numbers and names between two places."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self.at, self._end = data, at, end

    @property
    def ended(self) -> bool:
        return self.at >= self._end

    def byte(self) -> int:
        if self.at >= self._end:
            raise ValueError("it ends inside a section")
        self.at += 1
        return self._data[self.at - 1]

    def u32(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:
                raise ValueError("a number has too many bytes")
        if value >= 1 << 32:
            raise ValueError("a number is too large")
        return value

    def signed(self) -> None:
        """Pass over a number of up to 33 bits (a type)."""
        for _ in range(5):
            if self.byte() < 0x80:
                return
        raise ValueError("a number has too many bytes")

    def name(self) -> str:
        size = self.u32()
        if size > self._end - self.at:
            raise ValueError("it ends inside a name")
        self.at += size
        return self._data[self.at - size : self.at].decode()


def _sections(data: bytes, wanted: int) -> Iterator[tuple[int, int]]:
    reader = _Reader(data, 8, len(data))
    while not reader.ended:
        number, size = reader.byte(), reader.u32()
        if size > len(data) - reader.at:
            raise ValueError("it ends inside a section")
        if number == wanted:
            yield reader.at, reader.at + size
        reader.at += size


def _count(reader: _Reader) -> range:
    count = reader.u32()
    if count > _MAX_IMPORTS:
        raise ValueError(f"it has {count} imports")
    return range(count)


def _module_imports(reader: _Reader) -> Iterator[str]:
    for _ in _count(reader):
        yield reader.name()
        reader.name()
        match reader.byte():
            case 0:  # a function of a type
                reader.u32()
            case 1:  # a table
                _reference(reader)
                _limits(reader)
            case 2:  # a memory
                _limits(reader)
            case 3:  # a global
                _reference(reader)
                reader.byte()
            case 4:  # a tag
                reader.byte()
                reader.u32()
            case other:
                raise ValueError(f"an import of the unknown kind {other}")


def _reference(reader: _Reader) -> None:
    """A value type: one byte, or for references with a heap type two forms that name one."""
    if reader.byte() in (0x63, 0x64):
        reader.signed()


def _limits(reader: _Reader) -> None:
    flags = reader.byte()
    if flags > 0x0F:
        raise ValueError(f"limits with the unknown flags {flags}")
    # memory64 has numbers of up to 64 bits, a page size follows where it is not 64 KiB.
    for _ in range(1 + (flags & 1) + (flags >> 3)):
        for _ in range(10):
            if reader.byte() < 0x80:
                break
        else:
            raise ValueError("a number has too many bytes")


def _component_imports(reader: _Reader) -> Iterator[str]:
    for _ in _count(reader):
        form = reader.byte()
        if form > 2:
            raise ValueError(f"an import name of the unknown form {form}")
        yield reader.name()
        if form == 2:
            reader.name()
        _extern(reader)


def _extern(reader: _Reader) -> None:
    match reader.byte():
        case 0:  # a core module
            reader.byte()
            reader.u32()
        case 1 | 4 | 5:  # a function, a component, an instance
            reader.u32()
        case 2:  # a value
            reader.byte()
            reader.signed()
        case 3:  # a type
            if reader.byte() == 0:
                reader.u32()
        case other:
            raise ValueError(f"an import of the unknown kind {other}")
