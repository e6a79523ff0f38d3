"""What is mapped of a file, and taken away again."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from forgeone_shim.kernel import mappings


def test_what_is_withheld_keeps_its_addresses_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"x" * 3 * mmap.PAGESIZE)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert mappings.of_file(fd) == ()
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ):
            (found,) = mappings.of_file(fd)
            assert found.end - found.start == 3 * mmap.PAGESIZE
            mappings.withhold(found)
            assert mappings.of_file(fd) == ()
            assert _permissions(found.start) == _permissions(found.end - 1) == "---p"
    finally:
        os.close(fd)


def _permissions(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, permissions, *_ = line.split()
        start, end = (int(one, 16) for one in place.split("-"))
        if start <= address < end:
            return permissions
    return ""
