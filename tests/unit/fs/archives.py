"""Building layers for tests, well-formed and hostile."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field

from forgeone_shim.fs.extract import Extractor
from forgeone_shim.fs.stream import Archive


@dataclass
class Member:
    """One entry; owned by whoever runs the tests unless told otherwise."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, **more: object) -> Member:
    return Member(name, type=tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> Member:
    return Member(name, type=tarfile.LNKTYPE, link=target)


def tar(members: Iterable[Member], format_: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive with these members, in this order and with these very names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.mode = member.type, member.link, member.mode
            info.uid, info.gid, info.mtime = member.uid, member.gid, member.mtime
            info.devmajor, info.devminor = member.device
            info.pax_headers = member.pax
            info.size = len(member.data)
            archive.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def header(
    name: bytes, type_: bytes = b"0", size: int = 0, link: bytes = b"", magic: bytes = b"ustar\x0000", **more: bytes
) -> bytes:
    """A raw header block with a right checksum; ``more`` maps ``at_OFFSET`` to bytes written over it."""
    block = bytearray(512)
    for offset, value in {
        0: name,
        100: b"0000644\0",
        108: b"%07o\0" % os.getuid(),
        116: b"%07o\0" % os.getgid(),
        124: b"%011o\0" % size,
        136: b"%011o\0" % 0,
        156: type_,
        157: link,
        257: magic,
    }.items():
        block[offset : offset + len(value)] = value
    for key, value in more.items():
        offset = int(key.removeprefix("at_"))
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def diff_id(archive: bytes) -> str:
    return "sha256:" + hashlib.sha256(archive).hexdigest()


def extract(archive: bytes, root: os.PathLike[str], trash: os.PathLike[str], piece: int = 700) -> Extractor:
    """Extract in this process, handed over in small pieces so that every boundary is crossed."""
    pieces = (archive[at : at + piece] for at in range(0, len(archive), piece))
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (root, trash)]
    try:
        extractor = Extractor(fds[0], fds[1], Archive(iter(pieces)))
        extractor.run()
        return extractor
    finally:
        for fd in fds:
            os.close(fd)
