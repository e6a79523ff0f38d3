"""Small files of the kinds that a kernel's package holds."""

from __future__ import annotations

import ctypes
import io
import lzma
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

from engines.microvm.boot.modules import _SIGNED

RELEASE = "6.1.0-test-amd64"
BANNER = f"Linux version {RELEASE} (builder@host) #1 SMP\0".encode()
PVH = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"


def elf(programs: Mapping[int, bytes] | None = None, sections: Mapping[str, bytes] | None = None) -> bytes:
    """An ELF file with so many program headers, by type, and sections, by name."""
    programs, sections = dict(programs or {}), {"": b"", **(sections or {})} if sections else {}
    if sections:
        sections[".shstrtab"] = "\0".join((*sections, ".shstrtab", "")).encode()
    at = 64 + 56 * len(programs) + 64 * len(sections)
    heads, tables, body, names = b"", b"", b"", list(sections)
    for kind, content in programs.items():
        heads += struct.pack("<IIQQQQQQ", kind, 4, at + len(body), 0, 0, len(content), len(content), 4)
        body += content
    for name, content in sections.items():
        title = sum(len(other) + 1 for other in names[: names.index(name)])
        tables += struct.pack("<IIQQQQIIQQ", title, bool(name), 0, 0, at + len(body), len(content), 0, 0, 1, 0)
        body += content
    first = 64 + len(heads)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, first if sections else 0, 0, 64, 56, len(programs)),
        *(64 if sections else 0, len(sections), len(sections) - 1 if sections else 0),
    )
    return header + heads + tables + body


def kernel(*, pvh: bool = True) -> bytes:
    return elf({4: PVH} if pvh else {}) + BANNER + bytes(1000)


def bzimage(payload: bytes, *, sectors: int = 4, protocol: int = 0x20F) -> bytes:
    """What a boot loader reads: set-up sectors, then code, then the compressed kernel and its size."""
    head = bytearray((sectors or 4) * 512 + 512)
    head[0x1F1], head[0x202:0x206] = sectors, b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<H", head, 0x20E, 0x300)
    head[0x500 : 0x500 + len(RELEASE) + 9] = f"{RELEASE} (b@h) #1".encode()
    held = payload + struct.pack("<I", len(payload))
    struct.pack_into("<II", head, 0x248, 100, len(held))
    return bytes(head) + bytes(100) + held + b"more"


def lz4_legacy(data: bytes) -> bytes:
    """As ``lz4 -l`` writes it."""
    library, made = ctypes.CDLL("liblz4.so.1"), b"\x02\x21\x4c\x18"
    for start in range(0, max(len(data), 1), 8 << 20):
        block = data[start : start + (8 << 20)]
        room = ctypes.create_string_buffer(len(block) + len(block) // 255 + 64)
        size = library.LZ4_compress_default(block, room, len(block), len(room))
        made += struct.pack("<I", size) + room.raw[:size]
    return made


def module(name: str, *depends: str, signed: bool = False, aliases: tuple[str, ...] = ()) -> bytes:
    said = ("license=GPL", *(f"alias={alias}" for alias in aliases), f"depends={','.join(depends)}", f"name={name}", "")
    image = elf(sections={".modinfo": "\0".join(said).encode()})
    return image + b"S" * 40 + bytes(8) + struct.pack(">I", 40) + _SIGNED if signed else image


def tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def deb(path: Path, files: Mapping[str, bytes], *, data: str = "data.tar.xz") -> Path:
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar", b"odd"), (data, lzma.compress(tar(files)))):
        made += f"{name:16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n".encode() + content
        made += b"\n" * (len(content) % 2)
    path.write_bytes(made)
    return path


def package_files(*, wanted: tuple[str, ...], extra: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """What Debian's package of a kernel holds, with these modules."""
    folder = f"./lib/modules/{RELEASE}"
    return {
        f"./boot/vmlinuz-{RELEASE}": bzimage(lzma.compress(kernel(), check=lzma.CHECK_CRC32)),
        "./boot/System.map": b"not needed",
        f"{folder}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        **{f"{folder}/kernel/{name.replace('_', '-')}.ko": module(name) for name in wanted if name != "ext4"},
        **(extra or {}),
    }
