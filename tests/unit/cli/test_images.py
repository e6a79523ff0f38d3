"""``forge images export`` and ``import`` against a node double."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.cli import images
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.rpc import node_pb2
from tests.unit.cli.conftest import Forge
from tests.unit.cli.node_double import NodeDouble

Capture = pytest.CaptureFixture[str]


def test_an_export_is_a_file(node: NodeDouble, forge: Forge, tmp_path: Path) -> None:
    node.images.archive = [b"one", b"two"]
    assert forge("images", "export", "-o", str(tmp_path / "it.tar"), "app", "other") == 0
    assert (tmp_path / "it.tar").read_bytes() == b"onetwo"
    assert list(node.images.requests[-1].images) == ["app", "other"]


def test_an_export_that_fails_midway_leaves_no_file(
    node: NodeDouble, forge: Forge, tmp_path: Path, capsys: Capture
) -> None:
    def pieces() -> Any:
        yield b"one"
        raise FailedPrecondition("a blob is gone")

    node.images.archive = pieces()
    assert forge("images", "export", "-o", str(tmp_path / "it.tar"), "app") == 1
    assert "a blob is gone" in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name != "logs"] == []


def test_an_export_goes_down_a_pipe(node: NodeDouble, forge: Forge, capfdbinary: Any) -> None:
    node.images.archive = [b"one"]
    assert forge("images", "export", "app") == 0
    assert capfdbinary.readouterr().out == b"one"


def test_an_import_sends_the_file_and_says_the_names(
    node: NodeDouble, forge: Forge, tmp_path: Path, capsys: Capture
) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "it.tar").write_bytes(data)
    node.images.imported = [node_pb2.PulledImage(repo_tags=["a/b:1"]), node_pb2.PulledImage(repo_digests=["a/c@x"])]
    assert forge("images", "import", "--name", "a/b:1", str(tmp_path / "it.tar")) == 0
    assert capsys.readouterr().out == "a/b:1\na/c@x\n"
    assert node.images.received == ("a/b:1", data)


def test_an_import_reads_a_pipe(node: NodeDouble, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"archive")
    os.close(writer)
    monkeypatch.setattr(images, "_STDIN", reader)
    assert forge("images", "import") == 0
    os.close(reader)
    assert node.images.received == ("", b"archive")


def test_a_file_that_is_not_there_is_named(forge: Forge, capsys: Capture) -> None:
    assert forge("images", "import", "/nonexistent") == 2
    assert forge("images", "import", "/tmp") == 2
    err = capsys.readouterr().err
    assert "/nonexistent" in err
    assert "/tmp is a directory" in err
