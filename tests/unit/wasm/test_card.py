"""What a container may know of itself, kept in a file by one process and read by another."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from engines.base import Step, Trust
from engines.wasm import card
from engines.wasm.card import Card, Limits
from forgeone_shim import abi
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.descriptors import open_descriptors

BOOT = Step(5, "created", "boot", "booted")
START = Step(6, "booted", "start", "running")


def test_what_is_amended_is_seen_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "card")
    view = card.create(path, Card(limits=Limits(memory=7)))
    assert view.read() == Card("created", Limits(memory=7))
    card.take(path, BOOT)
    card.take(path, START)
    card.limit(path, lambda limits: replace(limits, cpu_quota=9))
    assert view.read() == Card("running", Limits(memory=7, cpu_quota=9), (BOOT, START))
    other = card.see(path)
    assert other is not None
    assert other.read() == view.read()
    card.correct(path, "stopping")
    assert view.read() == Card("stopping", Limits(memory=7, cpu_quota=9), (BOOT, START))


def test_a_guest_s_process_keeps_no_descriptor_of_it(tmp_path: Path) -> None:
    before = open_descriptors()
    made, seen = card.create(str(tmp_path / "card"), Card()), card.see(str(tmp_path / "card"))
    assert seen is not None
    assert open_descriptors() == before
    assert made.read() == seen.read() == Card()


def test_a_guest_s_process_cannot_make_it_one_that_it_may_write(tmp_path: Path) -> None:
    path = str(tmp_path / "card")
    made, seen = card.create(path, Card()), card.see(path)
    assert seen is not None
    libc = ctypes.CDLL(None, use_errno=True)
    for view in (made, seen):
        at = ctypes.c_void_p(view._start)
        assert libc.mprotect(at, ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES


def test_only_the_latest_steps_are_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "card")
    view = card.create(path, Card())
    steps = [
        Step(at, "running", "pause", "paused") if at % 2 else Step(at, "paused", "resume", "running")
        for at in range(100)
    ]
    for one in steps:
        card.take(path, one)
    assert view.read().steps == tuple(steps[-64:])


def test_of_a_container_that_does_not_ask_nothing_is_kept(tmp_path: Path) -> None:
    card.take(str(tmp_path / "card"), BOOT)
    assert list(tmp_path.iterdir()) == []


def test_it_is_made_once_and_can_be_written_by_root_alone(tmp_path: Path) -> None:
    path = tmp_path / "card"
    card.create(str(path), Card())
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        card.create(str(path), Card())
    assert card.see(str(tmp_path / "other")) is None


def test_a_writer_that_was_killed_between_its_writes_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "card")
    view = card.create(path, Card())
    card.take(path, BOOT)
    real, left = os.pwrite, [1]

    def until_killed(fd: int, data: bytes, at: int) -> int:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(fd, data[: len(data) // 2], at)

    monkeypatch.setattr(os, "pwrite", until_killed)
    with pytest.raises(KeyboardInterrupt):
        card.take(path, START)
    monkeypatch.undo()
    assert view.read() == Card("booted", Limits(), (BOOT,))
    card.take(path, START)
    assert view.read() == Card("running", Limits(), (BOOT, START))


def test_a_reader_never_sees_half_of_an_amendment(tmp_path: Path) -> None:
    path, done = str(tmp_path / "card"), threading.Event()
    view = card.create(path, Card())

    def write() -> None:
        for number in range(1, 500):
            card.limit(path, lambda _, number=number: Limits(*(number,) * 6))  # type: ignore[misc]
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        limits = view.read().limits
        assert limits == Limits(*(limits.memory,) * 6)
    thread.join()
    assert view.read().limits.memory == 499


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "card"
    path.write_text("else")
    with pytest.raises(InternalError):
        card.take(str(path), BOOT)
    assert path.read_text() == "else"


def test_how_a_container_is_known_stays_whatever_else_is_amended(tmp_path: Path) -> None:
    path, known = str(tmp_path / "card"), Trust(fingerprint="sha256:" + "ab" * 32, entropy=256, score=1)
    view = card.create(path, Card())
    assert view.read().trust == Trust()
    card.trust(path, known)
    for at in range(100):
        card.take(path, Step(at, "running", "pause", "paused"))
    card.limit(path, lambda limits: replace(limits, memory=2**63))
    assert view.read().trust == known and len(view.read().steps) == 64
    card.trust(path, Trust(contract="sha256:" + "cd" * 32))
    assert view.read().trust == Trust(contract="sha256:" + "cd" * 32)


def test_a_card_that_was_begun_before_it_had_trust_has_none(tmp_path: Path) -> None:
    path = tmp_path / "card"
    view = card.create(str(path), Card())
    with path.open("r+b") as file:
        for slot in (64, 2048):
            file.seek(slot + 1536)
            file.write(bytes(abi.TRUST.size))
    assert view.read().trust == Trust()
