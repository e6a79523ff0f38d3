"""The write-ahead segments: what a crash leaves of them, and what nobody should have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.audit import wal
from forgeone_shim.audit.wal import BLOCK, SEGMENT, Group, Segments

ENTRIES = st.lists(st.binary(max_size=100), max_size=10).map(tuple)


@given(st.integers(0, 2**61 - 1), ENTRIES, st.binary(max_size=500))
def test_a_group_reads_as_it_was_written(first: int, entries: tuple[bytes, ...], note: bytes) -> None:
    group = Group(first, entries, note)
    data = wal.encode(group)
    assert len(data) % BLOCK == 0
    found = wal.decode(data + data)
    assert found.groups == (group, group)
    assert [one.until for one in found.groups] == [len(data), 2 * len(data)]


@given(ENTRIES, st.data())
def test_a_group_that_was_changed_anywhere_is_none(entries: tuple[bytes, ...], data: st.DataObject) -> None:
    group = Group(7, entries, b"note")
    whole = bytearray(wal.encode(group))
    used = len(whole.rstrip(b"\0"))
    whole[data.draw(st.integers(0, used - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert group not in wal.decode(bytes(whole)).groups


@given(st.binary(max_size=200))
def test_whatever_is_in_a_segment_is_read(data: bytes) -> None:
    wal.decode(data)
    wal.decode(wal.encode(Group(0, (data,), data))[:64] + data)


def test_a_torn_group_hides_none_behind_it(tmp_path: Path) -> None:
    first, second = Group(0, (b"a" * 3 * BLOCK,), b"n"), Group(1, (b"b",), b"n")
    data = wal.encode(first)
    found = wal.decode(data[:BLOCK] + bytes(len(data) - BLOCK) + wal.encode(second))
    assert found.groups == (second,)
    assert [one.first for one in found.torn] == [0]


def test_segments_are_written_before_they_are_used(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "wal")
    try:
        for name in ("0", "1"):
            status = (tmp_path / "wal" / name).stat()
            assert (status.st_size, status.st_mode & 0o777) == (SEGMENT, 0o600)
            # No block is only reserved.
            assert status.st_blocks * 512 >= SEGMENT
    finally:
        segments.close()


def test_a_segment_is_not_written_over_before_it_is_in_the_tiles(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "wal")
    size = 0
    try:
        data = wal.encode(Group(0, (b"x" * 60_000,) * 8, b"n"))
        while segments.room(len(data), settled=0):
            size += 1
            segments.write(data, size)
        # Both are full.
        assert size == 2 * (SEGMENT // len(data))
        assert not segments.room(len(data), settled=size // 2 - 1)
        assert segments.room(len(data), settled=size // 2)
    finally:
        segments.close()


def test_what_was_written_ahead_is_gone_on_from(tmp_path: Path) -> None:
    groups = [Group(number, (bytes([number]),), b"n") for number in range(4)]
    segments = Segments(tmp_path / "wal")
    for group in groups[:2]:
        assert segments.room(BLOCK, 0)
        segments.write(wal.encode(group), group.end)
    segments.close()
    found = wal.read(tmp_path / "wal").groups
    segments = Segments(tmp_path / "wal", found)
    for group in groups[2:]:
        assert segments.room(BLOCK, 0)
        segments.write(wal.encode(group), group.end)
    segments.close()
    assert wal.read(tmp_path / "wal").groups == tuple(groups)


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    segments = Segments(tmp_path / "wal")
    try:
        mine = {fd for fd in os.listdir("/proc/self/fd") if fd not in before and os.path.exists(f"/proc/self/fd/{fd}")}
        assert not any(os.get_inheritable(int(fd)) for fd in mine)
    finally:
        segments.close()


def test_no_segments_are_no_groups(tmp_path: Path) -> None:
    assert wal.read(tmp_path / "wal") == wal.Found((), ())


def test_a_file_that_is_a_link_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "wal" / "0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Segments(tmp_path / "wal")
