from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.fs.trees import remove_tree, tree_usage


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_tree_is_removed_and_nothing_its_symlinks_lead_to(tmp_path: Path, parent: int) -> None:
    (tmp_path / "keep/inside").mkdir(parents=True)
    (tmp_path / "t/a/b/c").mkdir(parents=True)
    (tmp_path / "t/.1/x/y").mkdir(parents=True)
    (tmp_path / "t/.2").mkdir()
    (tmp_path / "t/a/b/f").write_text("x")
    (tmp_path / "t/a/link").symlink_to(tmp_path / "keep")
    os.mkfifo(tmp_path / "t/a/fifo")
    remove_tree(parent, "t")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "keep"]


def test_a_symlink_goes_and_its_target_stays(tmp_path: Path, parent: int) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "l").symlink_to("keep")
    remove_tree(parent, b"l")
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_what_is_not_there_is_no_error(parent: int) -> None:
    remove_tree(parent, "nothing")


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path, parent: int) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(parent, "deeper")
    assert not list(tmp_path.iterdir())


def test_usage_counts_blocks_and_a_hard_linked_file_once(tmp_path: Path, parent: int) -> None:
    empty = tree_usage(parent)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x" * 100_000)
    (tmp_path / "g").hardlink_to(tmp_path / "d/f")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "out").symlink_to("/usr")
    size, inodes = tree_usage(parent)
    assert inodes - empty[1] == 4
    assert 100_000 <= size - empty[0] < 200_000
