"""Records are stored before they are shown, and found by id, prefix or key."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, InvalidInput, NotFound
from forgeone_shim.runtime.table import Table
from forgeone_shim.state.store import StateStore


@dataclass(frozen=True)
class Thing:
    id: str
    key: str
    size: int = 0


def open_table(path: Path) -> tuple[StateStore, Table[Thing]]:
    store = StateStore(path / "db")
    return store, Table(store, "thing", "thing", Thing)


def test_records_come_back_after_a_restart(tmp_path: Path) -> None:
    store, table = open_table(tmp_path)
    table.add(Thing("aa1", "k1")).change(size=3)
    store.close()
    _, again = open_table(tmp_path)
    assert again.find("aa1").record == Thing("aa1", "k1", 3)
    found = again.by_key("k1")
    assert found is not None
    assert found.record.id == "aa1"


def test_a_prefix_must_be_unique(tmp_path: Path) -> None:
    _, table = open_table(tmp_path)
    table.add(Thing("aa1", "k1"))
    table.add(Thing("aa2", "k2"))
    assert table.find("aa2").record.key == "k2"
    assert table.find("aa1").record.key == "k1"
    with pytest.raises(InvalidInput, match="beginning of 2"):
        table.find("aa")
    with pytest.raises(NotFound):
        table.find("b")
    with pytest.raises(InvalidInput):
        table.find("")


def test_a_dropped_record_is_never_stored_again(tmp_path: Path) -> None:
    store, table = open_table(tmp_path)
    entry = table.add(Thing("aa1", "k1"))
    table.drop(entry)
    entry.change(size=9)
    assert store.items("thing", Thing) == []
    assert table.by_key("k1") is None


def test_dropping_an_older_record_keeps_the_key_of_the_newer(tmp_path: Path) -> None:
    _, table = open_table(tmp_path)
    old = table.add(Thing("aa1", "k"))
    table.add(Thing("aa2", "k"))
    table.drop(old)
    found = table.by_key("k")
    assert found is not None
    assert found.record.id == "aa2"


def test_work_is_waited_for_no_longer_than_the_caller_waits(tmp_path: Path) -> None:
    _, table = open_table(tmp_path)
    entry = table.add(Thing("aa1", "k"))
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with entry.working(NEVER):
            held.set()
            release.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    with pytest.raises(DeadlineExceeded, match="still under way"), entry.working(Deadline.after(0.01)):
        pass
    release.set()
    holder.join()
    with entry.working(Deadline.after(1)), entry.working(NEVER):
        pass
