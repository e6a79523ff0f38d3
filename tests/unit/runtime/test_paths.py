"""Where things lie."""

from __future__ import annotations

from pathlib import Path

from forgeone_shim.runtime.paths import Paths

ID = "c" * 64


def test_each_kind_has_a_parent_of_its_own() -> None:
    paths = Paths(Path("/root-of-it"), Path("/state-of-it"))
    assert paths.bundle(ID) == Path("/state-of-it/containers") / ID
    assert paths.sandbox(ID) == Path("/state-of-it/sandboxes") / ID
    assert paths.exit_file(ID) == Path("/state-of-it/exits") / ID
    assert paths.checkpoint(ID) == Path("/root-of-it/containers") / ID / "checkpoint"


def test_what_must_exist_is_made_again_without_harm(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "root", tmp_path / "state")
    paths.prepare()
    paths.prepare()
    assert all(one.is_dir() for one in (paths.exits, paths.sandboxes, paths.containers))
