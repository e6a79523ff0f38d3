"""A writable layer as an archive: everything in it, what was deleted, and nothing of overlayfs."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import time
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.fs import diff


def archived(tree: Path) -> tarfile.TarFile:
    out = io.BytesIO()
    assert diff.write(tree, out, NEVER) == []
    out.seek(0)
    return tarfile.open(fileobj=out)


def test_files_links_and_directories_keep_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"content")
    (tmp_path / "a/b/file").chmod(0o4751)
    os.link(tmp_path / "a/b/file", tmp_path / "z")
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    archive = archived(tmp_path)
    found = {member.name: member for member in archive}
    assert set(found) == {"a", "a/b", "a/b/file", "z", "link", "fifo"}
    assert archive.extractfile("a/b/file").read() == b"content"  # type: ignore[union-attr]
    assert found["z"].islnk() or found["a/b/file"].islnk()
    assert (found["link"].linkname, found["fifo"].isfifo()) == ("/etc/passwd", True)
    assert {found["z"].mode, found["a/b/file"].mode} == {0o4751}


def test_a_socket_is_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        assert archived(tmp_path).getnames() == []


def test_a_tree_deeper_than_any_recursion_is_archived(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(1200):
        here = here / "d"
        here.mkdir()
    assert len(archived(tmp_path).getnames()) == 1200
    while here != tmp_path:
        here.rmdir()
        here = here.parent


def test_a_deadline_that_has_passed_ends_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeadlineExceeded):
        diff.write(tmp_path, io.BytesIO(), Deadline.after(0))


def test_a_file_that_is_nearly_all_hole_does_not_outlast_the_deadline(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 42)
    began = time.monotonic()
    with open(os.devnull, "wb") as out, pytest.raises(DeadlineExceeded):
        diff.write(tmp_path, out, Deadline.after(0.2))
    assert time.monotonic() - began < 10
