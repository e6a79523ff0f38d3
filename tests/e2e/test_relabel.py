"""Files labelled for a container. The attribute is the kernel's own; what it means is up to a policy, not needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import mounts
from forgeone_shim.kernel.selinux import relabel

pytestmark = pytest.mark.root

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "volume"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    os.mkfifo(tree / "a" / "pipe")
    (tree / "out").symlink_to(tmp_path / "outside")
    (tree / "aside").symlink_to(tmp_path / "directory")
    (tmp_path / "outside").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "f").touch()
    try:
        os.setxattr(tmp_path / "outside", "security.selinux", b"a:b:c")
    except OSError:
        pytest.skip("this file system keeps no labels")
    return tree


def label(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).decode().rstrip("\0")
    except OSError:
        return ""


def test_all_below_is_labelled_and_nothing_beside(tree: Path, tmp_path: Path) -> None:
    relabel(str(tree), LABEL)
    below = [tree, *tree.rglob("*")]
    assert len(below) == 7
    assert {label(path) for path in below} == {LABEL}
    assert label(tmp_path / "outside") == "a:b:c"
    assert label(tmp_path / "directory") == label(tmp_path / "directory" / "f") == ""
    relabel(str(tree), LABEL)


def test_a_file_is_labelled_and_a_link_to_it_followed(tree: Path, tmp_path: Path) -> None:
    relabel(str(tree / "out"), LABEL)
    assert label(tmp_path / "outside") == LABEL
    assert label(tree / "out") == ""


def test_what_cannot_be_labelled_is_told_unless_it_is_so_already(tree: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    mounts.bind(tree, shown, readonly=True)
    try:
        with pytest.raises(InternalError, match=r"label .*Read-only"):
            relabel(str(shown), LABEL)
        relabel(str(tree), LABEL)
        relabel(str(shown), LABEL)
    finally:
        mounts.unmount(shown)


def test_a_tree_too_deep_is_refused(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(210):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(InternalError, match="label"):
        relabel(str(tmp_path / "d"), LABEL)
