"""What is kept of the cluster's policies: whole files, root's alone, and what is left of a writer that was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.cluster import objects
from forgeone_shim.cluster.store import NOTHING, Store
from forgeone_shim.contract import policies
from forgeone_shim.errors import InternalError
from tests.unit.cluster.test_objects import made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


@pytest.fixture
def store(directory: Path) -> Store:
    made_ = Store(directory)
    made_.prepare()
    return made_


def data(name: str, **spec: Any) -> bytes:
    return objects.file_of(made(name, spec or {"floor": True}))


def test_a_directory_that_is_not_there_keeps_nothing(directory: Path) -> None:
    assert Store(directory).load() == NOTHING


def test_what_is_written_is_there_for_the_next_one(store: Store, directory: Path) -> None:
    store.write("a", data("a"))
    store.write("b.json", data("b.json", floor=False))
    store.write("a", data("a", floor=False))
    kept = Store(directory).load()
    assert [(name, one.floor, one.path) for name, one in kept.policies.items()] == [
        ("a", False, "ztapolicies/a"),
        ("b.json", False, "ztapolicies/b.json"),
    ]
    assert not kept.broken and not kept.listed
    store.complete()
    store.remove("a")
    store.remove("a")
    kept = Store(directory).load()
    assert list(kept.policies) == ["b.json"] and kept.listed


def test_a_kept_file_is_one_that_forge_policy_check_can_read(store: Store, directory: Path) -> None:
    store.write("a", data("a"))
    assert [one.name for one in policies.read(directory / "policies")] == ["a"]


def test_directories_and_files_are_roots_alone(store: Store, directory: Path) -> None:
    store.write("a", data("a"))
    store.complete()
    assert [path.stat().st_mode & 0o777 for path in (directory, directory / "policies")] == [0o700, 0o700]
    assert (directory / "policies/a.json").stat().st_mode & 0o777 == 0o600


def test_what_a_writer_that_was_killed_has_left_counts_for_nothing_and_goes(store: Store, directory: Path) -> None:
    store.write("a", data("a"))
    (directory / "policies/b.json.new").write_bytes(data("b")[:20])
    (directory / "listed.new").write_bytes(b"")
    assert list(Store(directory).load().policies) == ["a"]
    Store(directory).prepare()
    assert sorted(os.listdir(directory)) == ["policies"]
    assert os.listdir(directory / "policies") == ["a.json"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(data("a")[:-3]), "is not JSON"),
        (lambda path: path.write_bytes(b""), "ztapolicies/a"),
        (lambda path: path.write_bytes(data("other")), "metadata.name: is 'other'"),
        (lambda path: path.chmod(0o666), "can be written by everybody"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "symbolic links"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "ztapolicies/a"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: path.write_bytes(b" " * (300 << 10)), "larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_no_other_is_lost(
    store: Store, directory: Path, spoil: Any, why: str
) -> None:
    for name in ("a", "b"):
        store.write(name, data(name))
    spoil(directory / "policies/a.json")
    kept = Store(directory).load()
    assert list(kept.policies) == ["b"]
    assert why in kept.broken["a"]


def test_clearing_leaves_nothing_and_may_be_repeated(store: Store, directory: Path) -> None:
    store.write("a", data("a"))
    store.complete()
    store.clear()
    store.clear()
    assert not directory.exists()


def test_a_disk_that_is_full_is_told_and_leaves_the_old_file(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a", data("a"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError, match="No space left"):
        store.write("a", data("a", floor=False))
    assert Store(directory).load().policies["a"].floor
    assert os.listdir(directory / "policies") == ["a.json"]
