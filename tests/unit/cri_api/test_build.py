"""Generating the interface's Python side."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cri.api import build


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/thing.proto").write_text('syntax = "proto3"; package one; message Thing { string name = 1; }\n')
    return tmp_path


def test_messages_and_services_appear_beside_the_proto(tree: Path) -> None:
    made = build.generate(("one/thing.proto",), tree)
    assert {path.name for path in made} >= {"thing_pb2.py", "thing_pb2_grpc.py"}
    assert all(path.parent == tree / "one" and path.exists() for path in made)


def test_nothing_is_done_twice(tree: Path) -> None:
    build.generate(("one/thing.proto",), tree)
    assert build.generate(("one/thing.proto",), tree) == []


def test_a_changed_proto_is_generated_again(tree: Path) -> None:
    made = build.generate(("one/thing.proto",), tree)
    later = max(path.stat().st_mtime for path in made) + 10
    os.utime(tree / "one/thing.proto", (later, later))
    assert build.generate(("one/thing.proto",), tree) != []


def test_a_broken_proto_is_an_error(tree: Path) -> None:
    (tree / "one/thing.proto").write_text("nonsense")
    with pytest.raises(RuntimeError, match=r"thing\.proto"):
        build.generate(("one/thing.proto",), tree)


def test_without_the_stub_plugin_the_rest_is_made(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    made = build.generate(("one/thing.proto",), tree)
    assert {path.name for path in made} == {"thing_pb2.py", "thing_pb2_grpc.py"}
