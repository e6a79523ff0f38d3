"""Writable layers on disk, and images as disks, as far as they need no root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.microvm.images import writable
from engines.microvm.images.cache import Images
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.kernel.spawn import find_program

MIB = 1 << 20
needs_mkfs = pytest.mark.skipif(find_program(writable.PROGRAM) is None, reason=f"{writable.PROGRAM} is not installed")


@needs_mkfs
def test_a_writable_layer_is_a_sparse_file_with_an_empty_file_system(tmp_path: Path) -> None:
    path = tmp_path / "layers" / "c"
    fd = writable.make(path, 64 * MIB, NEVER)
    try:
        assert os.fstat(fd).st_size == 64 * MIB
        assert os.fstat(fd).st_blocks * 512 < 8 * MIB
        assert os.pread(fd, 2, 1024 + 56) == b"\x53\xef"
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.close(fd)
    writable.remove(path)
    writable.remove(path)
    assert not path.exists()


@needs_mkfs
def test_nothing_is_left_of_a_writable_layer_that_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(InternalError, match="mkfs"):
        writable.make(path, 1, NEVER)
    assert not path.exists()


def test_disks_of_other_images_are_forgotten_with_what_was_left_half_made(tmp_path: Path) -> None:
    kept, gone = "a" * 64, "b" * 64
    for name in (f"{kept}.erofs", f"{gone}.erofs", f".new-{gone}.erofs", f".lock-{gone}", "other"):
        (tmp_path / name).touch()
    Images(tmp_path).retain([f"sha256:{kept}"])
    assert {path.name for path in tmp_path.iterdir()} == {f"{kept}.erofs", "other"}
    Images(tmp_path / "none").retain([])


def test_a_disk_that_is_there_is_opened_and_no_other_name_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 64}.erofs").write_bytes(b"disk")
    fd = Images(tmp_path).open(f"sha256:{'a' * 64}", "/nowhere", NEVER)
    assert os.read(fd, 10) == b"disk"
    os.close(fd)
    with pytest.raises(InvalidInput, match="is no digest"):
        Images(tmp_path).open("../../etc/passwd", "/nowhere", NEVER)
