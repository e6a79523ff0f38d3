"""Folders of configurations while they change: noticed by inotify, whatever the way to them."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.network.cni.folders import Folders


class Watched:
    """A folder that is told about; :meth:`until` waits for the watching thread alone, without asking."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self._told = threading.Condition()
        self._count = 0
        self.folders = Folders(1, self._changed)
        self.first = self.folders.look(self.path)

    def _changed(self, path: str) -> None:
        assert path == self.path
        with self._told:
            self._count += 1
            self._told.notify_all()

    def until(self, name: str | None) -> None:
        def reached() -> bool:
            networks = self.folders._watched[self.path].folder.networks
            return (networks[0].name if networks else None) == name

        with self._told:
            assert self._told.wait_for(reached, 10), f"{name} was not noticed"


def put(folder: Path, name: str, file: str = "10.conflist") -> None:
    (folder / file).write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "x"}]}))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    one = Watched(tmp_path / "etc" / "cni" / "net.d")
    yield one
    one.folders.close()


def test_a_folder_made_later_is_noticed(watched: Watched) -> None:
    folder = Path(watched.path)
    assert not watched.first.present
    folder.parent.parent.mkdir()
    folder.parent.mkdir()
    folder.mkdir()
    put(folder, "one")
    watched.until("one")


def test_files_written_renamed_and_removed_are_noticed(watched: Watched) -> None:
    folder = Path(watched.path)
    folder.mkdir(parents=True)
    put(folder, "one")
    watched.until("one")
    put(folder, "two", "made.tmp")
    (folder / "made.tmp").rename(folder / "05.conflist")
    watched.until("two")
    (folder / "05.conflist").unlink()
    watched.until("one")
    (folder / "10.conflist").rename(folder / "10.conflist.off")
    watched.until(None)


def test_a_folder_that_is_replaced_is_noticed(watched: Watched) -> None:
    folder = Path(watched.path)
    folder.mkdir(parents=True)
    put(folder, "old")
    watched.until("old")
    new = folder.parent / "new"
    new.mkdir()
    put(new, "new")
    folder.rename(folder.parent / "away")
    watched.until(None)
    new.rename(folder)
    watched.until("new")
    put(folder, "newer")
    watched.until("newer")


def test_a_folder_above_that_is_replaced_is_noticed(watched: Watched) -> None:
    folder = Path(watched.path)
    folder.mkdir(parents=True)
    put(folder, "old")
    watched.until("old")
    above = folder.parent
    above.rename(above.parent / "away")
    watched.until(None)
    folder.mkdir(parents=True)
    put(folder, "new")
    watched.until("new")


def test_a_symlink_turned_elsewhere_is_noticed(watched: Watched, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, name)
    link = Path(watched.path)
    link.parent.mkdir(parents=True)
    link.symlink_to("../../one")
    watched.until("one")
    made = link.parent / "made"
    made.symlink_to(tmp_path / "two")
    made.rename(link)
    watched.until("two")
    put(tmp_path / "two", "three")
    watched.until("three")


def test_files_that_are_symlinks_through_a_folder_of_data_are_noticed(watched: Watched) -> None:
    """As a ConfigMap is mounted: ``10.conflist -> ..data/10.conflist``, ``..data -> ..1``."""
    folder = Path(watched.path)
    for name in ("..1", "..2"):
        (folder / name).mkdir(parents=True)
        put(folder / name, name.strip("."), "10.conflist")
    (folder / "..data").symlink_to("..1")
    (folder / "10.conflist").symlink_to("..data/10.conflist")
    watched.until("1")
    (folder / "..made").symlink_to("..2")
    (folder / "..made").rename(folder / "..data")
    watched.until("2")


def test_plugins_beside_the_list_are_noticed(watched: Watched) -> None:
    folder = Path(watched.path)
    folder.mkdir(parents=True)
    put(folder, "one")
    watched.until("one")

    def types() -> tuple[str, ...]:
        return watched.folders.look(watched.path).networks[0].types

    (folder / "one").mkdir()
    assert types() == ("x",)
    (folder / "one" / "10.conf").write_text('{"type": "y"}')
    assert types() == ("x", "y")
    (folder / "one" / "10.conf").unlink()
    assert types() == ("x",)


def test_a_look_sees_what_was_there_before_it(watched: Watched) -> None:
    folder = Path(watched.path)
    folder.mkdir(parents=True)
    for number in range(20):
        put(folder, f"net{number}")
        assert watched.folders.look(watched.path).networks[0].name == f"net{number}"


def test_another_number_and_other_folders_count_after_a_reset(tmp_path: Path) -> None:
    folders = Folders(1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, "one")
        put(tmp_path / name, "two", "20.conflist")
        assert len(folders.look(str(tmp_path / name)).networks) == 1
    folders.reset(0, {str(tmp_path / "a")})
    assert folders.paths() == (str(tmp_path / "a"),)
    assert len(folders.look(str(tmp_path / "a")).networks) == 2
    folders.close()


def test_a_bad_plugin_beside_the_list_that_is_mended_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "net.d"
    (folder / "one").mkdir(parents=True)
    put(folder, "one")
    (folder / "one" / "10.conf").write_text("half of")
    watched = Watched(folder)
    assert "not JSON" in watched.first.problem
    (folder / "one" / "10.conf").write_text('{"type": "y"}')
    watched.until("one")
    assert not watched.folders.look(watched.path).problem
    watched.folders.close()


def test_without_watches_to_be_had_a_folder_is_read_at_each_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "inotify_init1")

    monkeypatch.setattr("forgeone_shim.network.cni.folders.Watches", none_left)
    folders = Folders(1)
    assert not folders.look(str(tmp_path)).present
    put(tmp_path, "one")
    assert [network.name for network in folders.look(str(tmp_path)).networks] == ["one"]
    monkeypatch.undo()
    put(tmp_path, "two")
    assert [network.name for network in folders.look(str(tmp_path)).networks] == ["two"]
    assert folders._watched[str(tmp_path)].watches is not None, "watched again as soon as that is possible"
    folders.close()


def test_a_folder_that_cannot_be_read_may_hold_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    folders = Folders(1)
    folder = folders.look(str(tmp_path / "loop"))
    assert folder.present
    assert "cannot be read" in folder.problem
    folders.close()


def test_a_call_that_is_under_way_at_the_end_still_sees_the_folder(tmp_path: Path) -> None:
    folders = Folders(1)
    folders.look(str(tmp_path))
    folders.close()
    before = len(os.listdir("/proc/self/fd"))
    put(tmp_path, "one")
    assert [network.name for network in folders.look(str(tmp_path)).networks] == ["one"]
    assert len(os.listdir("/proc/self/fd")) == before
