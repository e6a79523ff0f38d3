"""Reading tar headers: v7, ustar, star, GNU and PAX (POSIX.1-2024 ``pax``), strictly and in bounded memory.

Where the formats leave room this reads an archive as Go's ``archive/tar`` does, because that is what wrote and read
nearly every image: global PAX headers change no entry, and an archive may end without its two zero blocks. Whatever is
malformed is refused with :class:`~forgeone_shim.errors.InvalidInput`.

This module, like all that the unpack process imports, keeps away from modules that are slow to load.
"""

from __future__ import annotations

from struct import Struct
from zlib import adler32

from forgeone_shim.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Source(Protocol):
        """Where archive bytes come from."""

        def block(self) -> bytes | None:
            """The next 512 bytes, or ``None`` at a clean end."""

        def take(self, count: int) -> bytes:
            """Exactly ``count`` bytes."""

        def skip(self, count: int) -> None:
            """Pass over exactly ``count`` bytes."""


BLOCK = 512
REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_OLD_REGULAR, _CONTIGUOUS, _PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _GNU_SPARSE = (
    b"\0",
    b"7",
    b"x",
    b"g",
    b"L",
    b"K",
    b"S",
)
_KNOWN = frozenset((REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
_WITHOUT_DATA = frozenset((LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))

# What one header may make us hold in memory; the same bound as Go's.
MAX_META = 1 << 20
# PATH_MAX, the longest name any call of the kernel takes.
MAX_PATH = 4096
# XATTR_SIZE_MAX and XATTR_NAME_MAX.
MAX_XATTR, MAX_XATTR_NAME = 65536, 255
MAX_SPARSE = MAX_META // 24

# name, mode+uid+gid, size, mtime, checksum, type, linkname, magic+version, uname, gname, major, minor, prefix
_HEADER = Struct("100s 24s 12s 12s 8s c 100s 8s 32s 32s 8s 8s 155s 8x 4s")
_SPARSE = Struct("12s12s")
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_BLANK_CHECKSUM = 8 * 0x20


def bad(reason: str) -> InvalidInput:
    """The error for an archive that breaks its format's rules."""
    return InvalidInput("layer", reason)


def quoted(name: bytes) -> str:
    """A name out of an archive, fit for a message: printable and short."""
    return ascii(name[:200].decode("utf-8", "backslashreplace"))


class Entry:
    """One member of an archive. ``size`` counts the archive's bytes, ``real_size`` the file's (they differ if sparse).

    Times are nanoseconds since the epoch. ``sparse`` lists ``(offset, length)`` of the data, or is ``None``.
    """

    __slots__ = (
        "atime",
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "real_size",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: bytes, size: int = 0) -> None:
        self.name = name
        self.type = kind
        self.size = size
        self.real_size = size
        self.link = b""
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.atime = 0
        self.major = 0
        self.minor = 0
        self.xattrs: dict[str, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None


def entries(source: Source) -> Iterator[Entry]:
    """Each member in turn. The consumer reads the member's ``size`` bytes from ``source`` before it asks for the next;
    the padding after them is passed over here."""
    pax: dict[bytes, bytes] | None = None
    long_name: bytes | None = None
    long_link: bytes | None = None
    owners: dict[bytes, tuple[int, int, int]] = {}
    while (block := source.block()) is not None:
        if block == _ZERO:
            if source.block() not in (None, _ZERO):
                raise bad("a lone zero block inside the archive")
            return
        raw, kind, size = _split(block)
        if kind in (_PAX, _PAX_GLOBAL):
            records = _pax_records(_meta(source, size))
            if kind == _PAX:
                pax = records
            continue
        if kind == _LONG_NAME:
            long_name = _meta(source, size).partition(b"\0")[0]
            continue
        if kind == _LONG_LINK:
            long_link = _meta(source, size).partition(b"\0")[0]
            continue
        entry = _entry(raw, kind, size, owners)
        if pax:
            _apply_pax(entry, pax)
        if long_name is not None:
            entry.name = long_name
        if long_link is not None:
            entry.link = long_link
        _finish(entry, source, block, pax)
        pax = long_name = long_link = None
        size = entry.size
        yield entry
        if size % BLOCK:
            source.skip(-size % BLOCK)


_Raw = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes]


def _split(block: bytes) -> tuple[_Raw, bytes, int]:
    raw: _Raw = _HEADER.unpack(block)
    claimed = _number(raw[4], "checksum")
    # Half a block's bytes sum up below Adler-32's modulus, so its low half, less the initial 1, is their plain sum.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    found = total - sum(raw[4]) + _BLANK_CHECKSUM
    if claimed != found:
        # Some old writers summed signed bytes.
        signed = found - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if claimed != signed:
            raise bad("a header's checksum is wrong")
    size = _number(raw[2], "size")
    if size < 0:
        raise bad("a negative size")
    return raw, raw[5], size


def _entry(raw: _Raw, kind: bytes, size: int, owners: dict[bytes, tuple[int, int, int]]) -> Entry:
    name = raw[0].partition(b"\0")[0]
    if raw[12][0] and raw[7] == b"ustar\x0000":
        # star marks its headers at the very end and keeps atime and ctime in the prefix's last 24 bytes.
        prefix = raw[12][:131] if raw[13] == b"tar\0" else raw[12]
        name = prefix.partition(b"\0")[0] + b"/" + name
    if kind == _OLD_REGULAR:
        kind = DIRECTORY if name.endswith(b"/") else REGULAR
    elif kind == _CONTIGUOUS:
        kind = REGULAR
    entry = Entry(name, kind, 0 if kind in _WITHOUT_DATA else size)
    who = owners.get(raw[1])
    if who is None:
        field = raw[1]
        who = (_number(field[:8], "mode"), _number(field[8:16], "uid"), _number(field[16:], "gid"))
        if len(owners) < 256:
            owners[field] = who
    entry.mode, entry.uid, entry.gid = who
    entry.mode &= 0o7777
    entry.link = raw[6].partition(b"\0")[0]
    entry.mtime = entry.atime = _number(raw[3], "mtime") * 1_000_000_000
    if kind in (CHAR, BLOCK_DEVICE):
        entry.major, entry.minor = _number(raw[10], "device major"), _number(raw[11], "device minor")
    return entry


def _finish(entry: Entry, source: Source, block: bytes, pax: dict[bytes, bytes] | None) -> None:
    """Sparse maps, and the checks that every member must pass whatever headers told its values."""
    if entry.type == _GNU_SPARSE:
        _old_gnu_sparse(entry, source, block)
    elif pax and entry.type == REGULAR:
        _pax_sparse(entry, source, pax)
    if entry.type not in _KNOWN:
        raise bad(f"{quoted(entry.name)}: unknown type {quoted(entry.type)}")
    if not entry.name:
        raise bad("an entry without a name")
    if len(entry.name) > MAX_PATH or len(entry.link) > MAX_PATH:
        raise bad(f"{quoted(entry.name)}: a name longer than {MAX_PATH} bytes")
    # The largest id is what chown(2) takes for "leave as it is".
    if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):
        raise bad(f"{quoted(entry.name)}: owner {entry.uid}:{entry.gid} is out of range")
    if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
        raise bad(f"{quoted(entry.name)}: device {entry.major}:{entry.minor} is out of range")


def _number(field: bytes, what: str) -> int:
    """Octal text, or base-256 (GNU, star) where the first bit is set."""
    first = field[0]
    if first & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if value >> (bits - 1):
            value -= 1 << bits
        if not -(1 << 63) <= value < 1 << 63:
            raise bad(f"a header's {what} is out of range")
        return value
    text = field.strip(b" \0")
    if text.strip(b"01234567"):
        raise bad(f"a header's {what} is not a number: {quoted(field)}")
    return int(text, 8) if text else 0


def _meta(source: Source, size: int) -> bytes:
    if size > MAX_META:
        raise bad(f"an extended header of {size} bytes, more than {MAX_META}")
    data = source.take(size)
    source.skip(-size % BLOCK)
    return data


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n`` records. The sparse 0.0 format repeats two keys; their values become one map."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        digits = data[at:blank] if blank > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        # Each record is longer than its length's digits, so that the next one is further on.
        if not at < blank < end <= len(data) or data[end - 1] != 0x0A:
            raise bad("a malformed PAX record")
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise bad("a malformed PAX record")
        if key in (b"path", b"linkpath") and b"\0" in value:
            raise bad(f"a NUL in the PAX record {quoted(key)}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(sparse) % 2 == 0) != (key == b"GNU.sparse.offset") or b"," in value:
                raise bad("a malformed sparse map")
            sparse.append(value)
        else:
            records[key] = value
        at = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _decimal(value: bytes, what: str) -> int:
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit() or len(digits) > 19:
        raise bad(f"PAX {what} is not a number: {quoted(value)}")
    return int(value)


def _pax_time(value: bytes, what: str) -> int:
    whole, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise bad(f"PAX {what} is not a time: {quoted(value)}")
    seconds = _decimal(whole, what)
    nanos = int((fraction[:9] + b"000000000")[:9])
    return seconds * 1_000_000_000 + (-nanos if whole[:1] == b"-" else nanos)


def _apply_pax(entry: Entry, pax: dict[bytes, bytes]) -> None:
    """An empty value deletes a record: the header's own field stands."""
    for key, value in pax.items():
        if key.startswith(_XATTR):
            _add_xattr(entry, key[len(_XATTR) :], value)
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            size = _decimal(value, "size")
            if size < 0:
                raise bad("a negative size")
            if entry.type not in _WITHOUT_DATA:
                entry.size = entry.real_size = size
        elif key == b"uid":
            entry.uid = _decimal(value, "uid")
        elif key == b"gid":
            entry.gid = _decimal(value, "gid")
        elif key == b"mtime":
            entry.mtime = _pax_time(value, "mtime")
            entry.atime = max(entry.atime, entry.mtime)
        elif key == b"atime":
            entry.atime = max(entry.mtime, _pax_time(value, "atime"))


def _add_xattr(entry: Entry, name: bytes, value: bytes) -> None:
    if not 0 < len(name) <= MAX_XATTR_NAME or len(value) > MAX_XATTR:
        raise bad(f"{quoted(entry.name)}: extended attribute {quoted(name)} is too long")
    if entry.xattrs is None:
        entry.xattrs = {}
    entry.xattrs[name.decode("utf-8", "surrogateescape")] = value


def _old_gnu_sparse(entry: Entry, source: Source, block: bytes) -> None:
    """GNU type ``S``: four extents in the header, more in blocks that follow it before the data."""
    pairs: list[tuple[int, int]] = []
    area, more = block[386:482], block[482]
    entry.real_size = _number(block[483:495], "real size")
    while True:
        for offset, length in _SPARSE.iter_unpack(area):
            if not offset[0]:
                break
            pairs.append((_number(offset, "sparse offset"), _number(length, "sparse length")))
        if not more:
            break
        if len(pairs) > MAX_SPARSE:
            raise bad(f"{quoted(entry.name)}: a sparse map of more than {MAX_SPARSE} extents")
        extension = source.take(BLOCK)
        area, more = extension[:504], extension[504]
    entry.type = REGULAR
    _set_sparse(entry, pairs)


def _pax_sparse(entry: Entry, source: Source, pax: dict[bytes, bytes]) -> None:
    """GNU's PAX formats 0.0, 0.1 (map in the header) and 1.0 (map in front of the data)."""
    version = (pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b""))
    packed = pax.get(b"GNU.sparse.map", b"")
    in_front = version == (b"1", b"0")
    if not in_front and version not in ((b"0", b"0"), (b"0", b"1")) and not (packed and version == (b"", b"")):
        return
    if name := pax.get(b"GNU.sparse.name"):
        entry.name = name
        if b"\0" in name:
            raise bad("a NUL in the PAX record 'GNU.sparse.name'")
    size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
    if size:
        entry.real_size = _decimal(size, "sparse size")
    if in_front:
        numbers = _sparse_map_in_front(entry, source)
    else:
        numbers = [_decimal(part, "sparse map") for part in packed.split(b",")] if packed else []
    if len(numbers) % 2:
        raise bad(f"{quoted(entry.name)}: a malformed sparse map")
    _set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))


def _sparse_map_in_front(entry: Entry, source: Source) -> list[int]:
    """Decimal numbers, one a line, the first their pair count, padded to a whole block."""
    lines: list[bytes] = []
    rest = b""
    wanted, left = 1, MAX_META
    while len(lines) < wanted:
        if entry.size < BLOCK or left <= 0:
            raise bad(f"{quoted(entry.name)}: a malformed sparse map")
        *complete, rest = (rest + source.take(BLOCK)).split(b"\n")
        entry.size -= BLOCK
        left -= BLOCK
        if complete and not lines:
            count = _decimal(complete[0], "sparse map")
            if not 0 <= count <= MAX_SPARSE:
                raise bad(f"{quoted(entry.name)}: a sparse map of {count} extents")
            wanted = 1 + 2 * count
        lines += complete
    return [_decimal(line, "sparse map") for line in lines[1:wanted]]


def _set_sparse(entry: Entry, pairs: list[tuple[int, int]]) -> None:
    at = 0
    for offset, length in pairs:
        if offset < at or length < 0 or offset + length > entry.real_size:
            raise bad(f"{quoted(entry.name)}: a sparse map that overlaps or leaves the file")
        at = offset + length
    if sum(length for _, length in pairs) != entry.size:
        raise bad(f"{quoted(entry.name)}: a sparse map that does not cover its data")
    entry.sparse = [pair for pair in pairs if pair[1]]
