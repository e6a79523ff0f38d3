"""Writable layers on disk, and images as disks, as far as they need no root."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.microvm.images import writable
from engines.microvm.images.cache import Images
from engines.microvm.keeper.disks import Disks
from engines.microvm.keeper.orders import Disk
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, InvalidInput, ResourceExhausted
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


def test_a_disk_that_is_being_made_is_not_forgotten(tmp_path: Path) -> None:
    name = "a" * 64
    lock, draft = tmp_path / f".lock-{name}", tmp_path / f".new-{name}.erofs"
    draft.touch()
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    Images(tmp_path).retain([])
    assert lock.exists() and draft.exists()
    os.close(fd)
    Images(tmp_path).retain([])
    assert not list(tmp_path.iterdir())


def test_a_disk_is_made_by_one_at_a_time_whoever_removes_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, busy, made, packed = "a" * 64, threading.Event(), threading.Event(), []

    def pack(_images: Images, tree: str, draft: Path, _deadline: Deadline) -> None:
        packed.append(tree)
        busy.set()
        assert made.wait(10)
        draft.write_text(tree)

    monkeypatch.setattr(Images, "_pack", pack)
    monkeypatch.setattr(os, "chown", lambda *_: None)
    images, texts = Images(tmp_path), []

    def make(tree: str) -> None:
        fd = images.open(name, tree, NEVER)
        texts.append(os.read(fd, 100))
        os.close(fd)

    threads = [threading.Thread(target=make, args=(tree,)) for tree in ("first", "second")]
    threads[0].start()
    assert busy.wait(10)
    Images(tmp_path).retain([])
    threads[1].start()
    with pytest.raises(DeadlineExceeded, match="while another packed"):
        images.open(name, "third", Deadline.after(0.01))
    made.set()
    for thread in threads:
        thread.join()
    assert packed == ["first"] and texts == [b"first", b"first"]


def test_a_disk_that_is_there_is_opened_and_no_other_name_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 64}.erofs").write_bytes(b"disk")
    fd = Images(tmp_path).open(f"sha256:{'a' * 64}", "/nowhere", NEVER)
    assert os.read(fd, 10) == b"disk"
    os.close(fd)
    with pytest.raises(InvalidInput, match="is no digest"):
        Images(tmp_path).open("../../etc/passwd", "/nowhere", NEVER)


def test_what_is_written_to_is_on_no_disk_that_can_only_be_read() -> None:
    taken: list[int] = []
    vmm = cast("Any", SimpleNamespace(luns=4, slots=2, add_disk=lambda lun, *_, **__: taken.append(lun)))
    disks = Disks(vmm)
    layers = [disks.take(Disk(readonly=False), -1) for _ in range(2)]
    images = [disks.take(Disk(key=name), -1) for name in ("one", "other", "one")]
    assert (layers, images, taken) == ([2, 3], [0, 1, 0], [2, 3, 0, 1])
    with pytest.raises(ResourceExhausted):
        disks.take(Disk(readonly=False), -1)
